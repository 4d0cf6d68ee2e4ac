"""Injection against its equations, and everything that reads a model's states on models with a pair for a state."""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import assert_equal, mixed_problems, tiny, weights

from looped_lib.config import ConfigError, ModelConfig, PenaltyConfig
from looped_lib.dynamics.depth import depth_curve
from looped_lib.dynamics.exits import exit_curve, generate
from looped_lib.dynamics.fixed_points import fate
from looped_lib.dynamics.jacobian import dense_jacobian
from looped_lib.dynamics.prefixes import SharedPrefixes
from looped_lib.dynamics.summary import dynamics, gains, spectra
from looped_lib.dynamics.trajectory import Trajectory, logit_lens, trajectory
from looped_lib.models.cache import Cache
from looped_lib.models.config import InjectionKind
from looped_lib.models.looped import LoopedTransformer
from looped_lib.models.state import held, loop_at, moving
from looped_lib.regularizers import public_code_penalty
from looped_lib.training.jacobian_penalty import JacobianPenalty
from looped_lib.training.objective import Objective
from looped_lib.training.trainer import Trainer, train

KINDS = [kind for kind in get_args(InjectionKind) if kind != "none"]
SMALL = {"d_model": 16, "n_heads": 2, "d_ff": 24, "max_len": 16, "init_std": 0.3, "dropout": 0.0}
EVERY = [{"injection": kind} for kind in KINDS]
EVERY += [{"injection": "add", "initial_state": "random"}, {"injection": "concat", "prelude_layers": 1, "coda_layers": 1}]
D = SMALL["d_model"]


def build(**changes) -> LoopedTransformer:
    torch.manual_seed(0)
    model = LoopedTransformer(ModelConfig(**{**SMALL, **changes})).double().eval()
    with torch.no_grad():  # vectors at their initial constants would hide a missing one
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def phi(model: LoopedTransformer, h: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """The injection's equation, then the blocks."""
    i = model.injection
    if model.config.injection == "add":
        x = h + e
    elif model.config.injection == "concat":
        x = torch.einsum("ij,bsj->bsi", i.adapter.weight[:, :D], h) + torch.einsum("ij,bsj->bsi", i.adapter.weight[:, D:], e)
    else:
        delta = torch.log1p(torch.exp(i.raw_delta))
        x = torch.exp(delta * -torch.exp(i.log_a)) * h + delta * torch.einsum("ij,bsj->bsi", i.B, e)
    for layer in model.layers:
        x = layer(x)
    return x


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 5, D, dtype=torch.float64), torch.randn(3, 5, D, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("placement", ["pre_norm", "sandwich_dual"])
def test_a_loop_is_its_equation_and_leaves_the_input(kind, placement):
    model, (h, e) = build(injection=kind, k_layers=2, norm_placement=placement), pair()
    state = torch.cat([h, e], -1)
    new = model.step(state)
    torch.testing.assert_close(moving(model, new), phi(model, h, e), rtol=1e-10, atol=1e-10)
    assert torch.equal(held(model, new), e)
    torch.testing.assert_close(model.loop_norm(model.before_norm(state)), new, rtol=0, atol=0)


@pytest.mark.parametrize("changes", EVERY, ids=str)
def test_the_whole_forward_pass(changes):
    model, ids = build(**changes), torch.randint(0, 15, (3, 7))
    e = model.token_embedding.weight[ids] + model.position_embedding.weight[:7]
    for layer in model.prelude:
        e = layer(e)
    h = model.start.by_position[:7].expand_as(e) if "initial_state" in changes else e
    for _ in range(3):
        h = phi(model, h, e)
    for layer in model.coda:
        h = layer(h)
    torch.testing.assert_close(model(ids, 3), model.final_norm(h) @ model.token_embedding.weight.T, rtol=1e-10, atol=1e-10)


def test_the_decay_contracts_and_starts_as_parcaes():
    injection = LoopedTransformer(ModelConfig(**SMALL, injection="diagonal")).injection
    torch.testing.assert_close(injection.decay(), torch.full((D,), math.sqrt(1 / 5)), rtol=1e-6, atol=0)
    assert torch.equal(injection.B, torch.eye(D))
    with torch.no_grad():
        injection.log_a.normal_().mul_(2)
        injection.raw_delta.normal_().mul_(2)
    expected = torch.exp(-F.softplus(injection.raw_delta) * injection.log_a.exp())
    assert 0 < injection.decay().min() and injection.radius() == expected.max() < 1


def test_nothing_changes_without_injection():
    model = build()
    h = model.embed(torch.zeros(1, 4, dtype=torch.long))
    step, x = loop_at(model, h)
    assert h.shape[-1] == D and step == model.step and torch.equal(x, h)
    assert not [name for name in model.state_dict() if name.startswith(("injection", "start"))]


@pytest.mark.parametrize("kind", KINDS)
def test_jacobians_are_those_of_the_moving_part(kind):
    """Against J of the equation; that of the whole state has d_model eigenvalues 1 more per position."""
    model, (h, e) = build(injection=kind), pair()
    state = torch.cat([h, e], -1)
    step, x = loop_at(model, state)
    exact = torch.autograd.functional.jacobian(lambda y: phi(model, y, e), h)
    for row in range(3):
        mine = torch.autograd.functional.jacobian(step, x)[row, :, :, row]
        torch.testing.assert_close(mine, exact[row, :, :, row], rtol=1e-9, atol=1e-9)
    ones = torch.linalg.eigvals(dense_jacobian(model.step, state[0])).sub(1).abs() < 1e-6
    assert ones.sum() == 5 * D
    for config in (PenaltyConfig(weight=0.1, share=1.0), public_code_penalty(), *power_penalties()):
        got = JacobianPenalty(config, seed=3)(model, state, 7)
        reference = JacobianPenalty(config, seed=3)(Plain(model, e), h, 7)
        torch.testing.assert_close(got, reference, rtol=1e-9, atol=0)
    some = PenaltyConfig(weight=0.1, share=0.5)  # of three rows the first two
    got, reference = JacobianPenalty(some, 3)(model, state, 7), Plain(model, e[:2])
    torch.testing.assert_close(got, JacobianPenalty(replace(some, share=1.0), 3)(reference, h[:2], 7), rtol=1e-9, atol=0)


def power_penalties() -> list[PenaltyConfig]:
    kinds = ("spectral_norm", "spectral_radius")
    return [PenaltyConfig(weight=0.1, share=1.0, quantity=q, product="jvp", iterations=3) for q in kinds]


class Plain(torch.nn.Module):
    """Phi at constant e, as a model whose whole state is h."""

    def __init__(self, model, e):
        super().__init__()
        self.model, self.e = model, e

    def step(self, h):
        return phi(self.model, h, self.e)


@pytest.mark.parametrize("changes", EVERY, ids=str)
def test_caches_and_prefixes_hold_the_states_of_whole_sequences(changes):
    model, ids = build(**changes), torch.randint(0, 15, (40, 12)).sort(0).values
    assert torch.equal(model.generate(ids[:6, :4], 3, 8), model.generate(ids[:6, :4], 3, 8, use_cache=False))
    c = model.config
    cache, logits = Cache.empty(3, c.k_layers, c.prelude_layers, c.coda_layers, 12), []
    for part in (ids[:, :4], ids[:, 4:7], *ids[:, 7:].split(1, dim=1)):
        h = model.embed(part, cache)
        for slots in cache.loops:
            h = model.step(h, slots)
        logits.append(model.readout(h, cache.coda))
    torch.testing.assert_close(torch.cat(logits, 1), model(ids, 3), rtol=1e-9, atol=1e-9)
    ids = ids[torch.from_numpy(np.lexsort(ids.numpy().T[::-1]))]
    shared, h = SharedPrefixes(model, ids, width=4), model.embed(ids)
    for _ in range(3):
        torch.testing.assert_close(shared.logits(4), model.readout(h)[:, -4:])
        for segment, part in zip(shared.segments, shared.states, strict=True):
            torch.testing.assert_close(part, h[segment.rows, segment.start : segment.end])
        shared.step()
        h = model.step(h)


@pytest.mark.parametrize("changes", EVERY, ids=str)
def test_norms_and_residuals_are_those_of_the_moving_part(changes, tmp_path):
    model, problems = build(**changes), mixed_problems()
    one = problems[:1]
    ids = one.ids[:, : int((one.ids != 13).sum()) - 1]
    states = [model.embed(ids)]
    for _ in range(6):
        states.append(model.step(states[-1]))
    h = torch.stack([s[..., :D] for s in states])
    norm, moved = h.norm(dim=-1), (h[1:] - h[:-1]).norm(dim=-1)
    curve = depth_curve(model, one, 6)
    torch.testing.assert_close(curve.state_norm, norm.mean((1, 2)), rtol=1e-12, atol=0)
    torch.testing.assert_close(curve.residual[1:], (moved / norm[:-1]).mean((1, 2)), rtol=1e-12, atol=0)
    path = trajectory(model, ids, 6)
    path.save(tmp_path / "path")
    for p in (path, Trajectory.load(tmp_path / "path"), path.problem(0)):
        assert torch.equal(p.states, h) and torch.equal(p.norm, norm)
        torch.testing.assert_close(p.residual[1:].double(), moved / norm[:-1], rtol=1e-5, atol=0)
        assert torch.equal(logit_lens(model, p).prediction[4], model.readout(states[4]).argmax(-1))
    before = model.before_norm(states[2])[..., :D].norm(dim=-1)
    torch.testing.assert_close(path.before_norm[3].double(), before, rtol=1e-5, atol=0)
    found = fate(model, ids, 128)
    torch.testing.assert_close(found.residual[1], (h[2] - h[1]).norm(dim=(1, 2)) / h[1].norm(dim=(1, 2)))


@pytest.mark.parametrize("changes", EVERY, ids=str)
def test_exits_and_dynamics(changes):
    model, problems = build(**changes), mixed_problems()
    curve, exits = depth_curve(model, problems, 5), exit_curve(model, problems, [0.0, 10.0], max_loops=5)
    assert torch.equal(exits.correct[:, 0], curve.correct[:, 5]) and torch.equal(exits.correct[:, 1], curve.correct[:, 1])
    if not model.config.coda_layers:
        ids = problems.ids[:6, :4]
        assert torch.equal(generate(model, ids, 6, 0.0, 4).ids, model.generate(ids, 4, 6))
    path = trajectory(model, problems.ids[:2, :5], 4)
    e = model.embed(problems.ids[:1, :5])[..., D:]
    for loop in (1, 4):
        exact = torch.autograd.functional.jacobian(lambda x: phi(model, x, e), path.states[loop, :1]).reshape(5 * D, 5 * D)
        values = torch.linalg.eigvals(exact).abs()
        assert spectra(model, path, [loop])[loop].abs().max().item() == pytest.approx(values.max().item(), rel=1e-8)
        found = gains(model, path, [loop, 4])
        assert found["radius"][0] == pytest.approx(values.max().item(), rel=1e-8)
        assert found["sigma_max"][0] == pytest.approx(torch.linalg.matrix_norm(exact, 2).item(), rel=1e-6)
        assert found["rms"][0] == pytest.approx(exact.square().mean(0).sum().sqrt().item(), rel=1e-8)
    assert dynamics(model, problems, n_problems=2, n_loops=128, max_depth=5)["n_loops"] <= 128


def test_a_carried_row_gets_its_input_anew():
    """Its h is what it was; its e comes from today's weights, with gradient."""
    config = tiny(model=replace(tiny().model, injection="add", dropout=0.0))
    torch.manual_seed(0)
    model = LoopedTransformer(config.model)
    ids = torch.randint(0, 10, (4, 8))
    labels = torch.where(torch.arange(8) > 4, ids, -100)
    start = torch.randn(2, 8, 2 * D)
    loss = Objective(model, config)(ids, labels, 2, 2, start, 0, 0)
    fresh = model.embed(ids)
    state = torch.cat([torch.cat([start[..., :D], fresh[:2, :, D:]], -1), fresh[2:]])
    for _ in range(2):
        state = model.step(state)
    assert torch.equal(loss.last, state)
    expected = F.cross_entropy(model.readout(state).flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    gradients = [torch.autograd.grad(x, list(model.parameters())) for x in (loss.values["ce"], expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("changes", [{"injection": "diagonal", "initial_state": "random"}, {"injection": "concat"}], ids=str)
def test_stopping_and_resuming_changes_nothing(changes, tmp_path, monkeypatch):
    config = tiny(model=replace(tiny().model, **changes))
    train(config, tmp_path / "whole", progress=False)
    one_step, stops = Trainer.train_step, {5, 13}

    def interrupted(self):
        if self.step in stops:
            stops.discard(self.step)
            raise KeyboardInterrupt
        return one_step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    for _ in range(len(stops)):
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "broken", progress=False)
    train(config, tmp_path / "broken", progress=False)
    assert_equal(weights(tmp_path / "broken"), weights(tmp_path / "whole"))


def test_a_random_start_is_random_in_training_and_fixed_in_evaluation():
    model, ids = build(injection="add", initial_state="random"), torch.randint(0, 15, (200, 16))
    h = model.embed(ids)[..., :D]
    assert torch.equal(h, model.embed(ids.flip(0))[..., :D]) and torch.equal(h[0], h[1]) and not torch.equal(h[:, 0], h[:, 1])
    assert torch.equal(h, build(injection="diagonal", initial_state="random").embed(ids)[..., :D])
    assert "start.by_position" not in model.state_dict()
    model.train()
    a, b = (model.embed(ids)[..., :D] for _ in range(2))
    assert not torch.equal(a, b) and a[0, 0, 0] != a[1, 0, 0]
    assert a.std().item() == pytest.approx(math.sqrt(2) * SMALL["init_std"], rel=0.02)
    assert h[0].std().item() == pytest.approx(math.sqrt(2) * SMALL["init_std"], rel=0.1)


def test_a_random_start_needs_injection():
    with pytest.raises(ConfigError, match="initial_state 'random' needs an injection"):
        ModelConfig(initial_state="random")

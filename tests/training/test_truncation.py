"""Truncated back-propagation: the gradient of an independent loop with detached states, on one process and on two."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_runs import assert_equal, plain, tiny, train_in_two_processes, weights

from looped_lib.config import ConfigError, PenaltyConfig, TrainingConfig
from looped_lib.models.looped import LoopedTransformer
from looped_lib.regularizers import LastChange
from looped_lib.training.objective import Objective
from looped_lib.training.trainer import train

KINDS = ["none", "add", "concat", "diagonal"]


def objective(injection: str, k: int) -> Objective:
    torch.manual_seed(0)
    config = tiny(model=replace(tiny().model, injection=injection, dropout=0.0, prelude_layers=1))
    penalty = PenaltyConfig(weight=0.1, onset=0, share=1.0)
    config = replace(config, training=replace(config.training, backprop_loops=k), penalty=penalty, terms={"l2": LastChange()})
    return Objective(LoopedTransformer(config.model).double(), config)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, 10, (4, 8))
    return ids, torch.where(torch.arange(8) > 4, ids, -100)


def gradients(loss: torch.Tensor, model: LoopedTransformer) -> dict[str, torch.Tensor | None]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


def loss(o: Objective, n_loops: int) -> torch.Tensor:
    terms = o(*batch(), n_loops, n_loops, None, 5, 0)
    return sum(terms.values.values())


@pytest.mark.parametrize("injection", KINDS)
@pytest.mark.parametrize("n_loops", [1, 2, 3])
def test_up_to_k_loops_it_is_the_full_gradient(injection, n_loops):
    full, truncated = objective(injection, 0), objective(injection, 3)
    a, b = gradients(loss(full, n_loops), full.model), gradients(loss(truncated, n_loops), truncated.model)
    assert_equal(a, b)


@pytest.mark.parametrize("injection", KINDS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_beyond_k_loops_it_is_that_of_detached_states(injection, k):
    o, (ids, labels) = objective(injection, k), batch()
    model, d = o.model, 16
    h = model.embed(ids)
    for t in range(5):
        before = h
        if t <= 5 - k:  # everything up to h_{T-k} is constant, but for the injected input
            before = h.detach() if injection == "none" else torch.cat([h[..., :d].detach(), h[..., d:]], dim=-1)
        h = model.step(before)
    ce = F.cross_entropy(model.readout(h).flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")
    change = (h - before)[..., :d].norm(dim=-1).mean()
    expected = gradients(ce + o.jacobian(model, h, 5, 0) + change, model)
    got = gradients(loss(o, 5), model)
    for name, g in expected.items():
        assert (g is None) == (got[name] is None), name
        if g is not None:
            torch.testing.assert_close(got[name], g, rtol=1e-9, atol=1e-12)
    assert (got["position_embedding.weight"] is None) == (injection == "none")
    assert got["token_embedding.weight"] is not None


def test_the_values_are_those_of_the_full_pass():
    full, truncated = objective("add", 0)(*batch(), 6, 6, None, 5, 0), objective("add", 2)(*batch(), 6, 6, None, 5, 0)
    assert_equal(full.values, truncated.values)
    assert torch.equal(full.last, truncated.last) and torch.equal(full.right, truncated.right)


@pytest.mark.parametrize("injection", ["none", "concat"])
def test_two_processes_train_the_same_model(injection, tmp_path):
    """Some batches have at most k loops, some more: parameters come and go from the gradient."""
    config = plain(backprop_loops=2)
    config = replace(config, model=replace(config.model, injection=injection), training=replace(config.training, steps=8))
    assert {config.loops.sample(config.seed, step) for step in range(8)} == {1, 2, 3}
    train_in_two_processes(config, tmp_path / "two")
    train(config, tmp_path / "one", progress=False)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:
        if name.endswith("qkv.bias"):  # a key's bias shifts all scores alike: its gradient is rounding, which AdamW makes a step
            a[name], b[name] = (torch.cat([w[name].chunk(3)[i] for i in (0, 2)]) for w in (a, b))
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_it_needs_one_loop_count_per_batch():
    with pytest.raises(ConfigError, match="backprop_loops needs one loop count per batch"):
        TrainingConfig(backprop_loops=2, per_sequence_loops=True)

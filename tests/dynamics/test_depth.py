"""The depth curve against generation, against the states themselves, and its early stop against running on."""

import math

import numpy as np
import pytest
import torch
from small_runs import mixed_problems
from torch import nn

from looped_lib.config import ModelConfig
from looped_lib.dynamics.depth import _graded, depth_curve
from looped_lib.dynamics.prefixes import SharedPrefixes
from looped_lib.models.looped import LoopedTransformer
from looped_lib.tasks.addition import CHARACTERS, EOS, PAD, SPACE, generate_problems
from looped_lib.tasks.problems import Problems, exact_match

SMALL = dict(d_model=16, n_heads=2, d_ff=32, max_len=16, dropout=0.1)
SHAPES = [{}, {"k_layers": 2}, {"prelude_layers": 1, "coda_layers": 1}, {"norm_placement": "pre_norm"}]


def small_model(**changes) -> LoopedTransformer:
    torch.manual_seed(0)
    model = LoopedTransformer(ModelConfig(**(SMALL | changes))).double()
    with torch.no_grad():  # far from initialisation, so that loops matter
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


class Contract(nn.Module):
    """Another model behind the three functions alone: no config, no caches."""

    def __init__(self, model: LoopedTransformer):
        super().__init__()
        self.inner = model

    def embed(self, ids):
        return self.inner.embed(ids)

    def step(self, h):
        return self.inner.step(h)

    def readout(self, h):
        return self.inner.readout(h)


def teach(model: LoopedTransformer, problems: Problems, depths: tuple[int, ...], steps: int = 150) -> None:
    """Fit the problems at some depths, so that the curve holds both right and wrong answers."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for i in range(steps):
        logits = model(problems.inputs, depths[i % len(depths)])
        nn.functional.cross_entropy(logits.flatten(0, 1), problems.labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def generated(model: LoopedTransformer, problems: Problems, depth: int) -> torch.Tensor:
    """What greedy decoding at this depth gets right; prompts of one length at a time."""
    correct = torch.empty(len(problems), dtype=torch.bool)
    for n in problems.prompt_len.unique().tolist():
        rows = problems.prompt_len == n
        new_tokens = problems.ids.shape[1] - n
        out = model.generate(problems.ids[rows, :n], depth, new_tokens)
        correct[rows] = exact_match(out, problems[rows])
    return correct


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_equals_generation_at_every_depth(changes):
    problems = mixed_problems()
    model = small_model(dropout=0.0, **changes)
    teach(model, problems[torch.arange(0, len(problems), 2)], depths=(2, 4))
    curve = depth_curve(model, problems, 8, problems_at_once=7)
    assert curve.depths.tolist() == list(range(9))
    for depth in (0, 1, 2, 4, 5, 8):
        assert torch.equal(curve.correct[:, depth], generated(model, problems, depth)), depth
    assert 0.2 < curve.accuracy[2] < 1.0 and curve.accuracy[0] < 0.2  # a curve of one value would prove nothing
    assert torch.equal(curve.accuracy, curve.correct.double().mean(0))


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_state_norm_and_residual_are_those_of_the_states(changes):
    model, problems = small_model(**changes).eval(), mixed_problems()
    curve = depth_curve(model, problems, 5, problems_at_once=9)
    real = problems.ids[:, 1:] != PAD  # a position is read to say the next character
    h, before = model.embed(problems.inputs), None
    for depth in range(6):
        assert curve.state_norm[depth].item() == pytest.approx(h.norm(dim=-1)[real].mean().item(), rel=1e-12)
        if before is not None:
            relative = ((h - before).norm(dim=-1) / before.norm(dim=-1))[real].mean().item()
            assert curve.residual[depth].item() == pytest.approx(relative, rel=1e-12)
        h, before = model.step(h), h
    assert math.isnan(curve.residual[0])


def test_any_model_with_the_three_functions_and_any_chunk_size():
    model, problems = small_model(coda_layers=1), mixed_problems()
    curve = depth_curve(model, problems, 4)
    other = depth_curve(Contract(model), problems, 4, problems_at_once=5)
    assert torch.equal(curve.correct, other.correct)
    torch.testing.assert_close(curve.state_norm, other.state_norm, rtol=1e-12, atol=0)
    torch.testing.assert_close(curve.residual, other.residual, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_shared_prefixes_hold_the_states_of_whole_sequences(changes):
    model = small_model(**changes).eval()
    ids = generate_problems(2, 400, seed=1).inputs
    ids = ids[torch.from_numpy(np.lexsort(ids.numpy().T[::-1]))]
    shared = SharedPrefixes(model, ids, width=4)
    assert sum(h.shape[0] * h.shape[1] for h in shared.states) < 0.85 * ids.numel()
    h = model.embed(ids)
    for _ in range(3):
        torch.testing.assert_close(shared.logits(4), model.readout(h)[:, -4:])
        for segment, part in zip(shared.segments, shared.states, strict=True):
            torch.testing.assert_close(part, h[segment.rows, segment.start : segment.end])
        shared.step()
        h = model.step(h)
    for segment in shared.segments:
        assert segment.copies.sum() == len(ids)


class Repeats(nn.Module):
    """h_{t+1} = map(h_t) on small whole numbers; the readout depends on the state. Counts its steps."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.steps = kind, 0

    def embed(self, ids):
        return ids[..., None].double() * torch.arange(1.0, 4.0, dtype=torch.float64) + 40

    def step(self, h):
        self.steps += 1
        return {"fixed": torch.floor(h / 2), "two": 31 - h, "three": h.roll(1, -1), "never": h + 1}[self.kind]

    def readout(self, h):
        return nn.functional.one_hot(torch.where(h[..., 0] % 7 < 3, EOS, 0).long(), 15).float()


@pytest.mark.parametrize(("kind", "most_steps"), [("fixed", 18), ("two", 4), ("three", 4), ("never", 60)])
def test_early_stop_changes_nothing(kind, most_steps, monkeypatch):
    torch.manual_seed(0)
    problems = Problems(torch.randint(0, 10, (50, 3)), torch.full((50,), 2), CHARACTERS)
    problems.ids[:, 2] = EOS
    model = Repeats(kind)
    stopped = depth_curve(model, problems, 60)
    assert model.steps <= most_steps
    monkeypatch.setattr(torch, "equal", lambda a, b: False)
    model.steps = 0
    full = depth_curve(model, problems, 60)
    assert model.steps == 60
    assert (stopped.correct == full.correct).all()
    assert (stopped.state_norm == full.state_norm).all()
    torch.testing.assert_close(stopped.residual, full.residual, rtol=0, atol=0, equal_nan=True)
    assert len(set(map(tuple, full.correct.T.tolist()))) > 1  # the depths do differ


def test_mode_and_gradients_are_left_alone():
    model, problems = small_model(dropout=0.5).train(), mixed_problems()
    first, second = depth_curve(model, problems, 3), depth_curve(model, problems, 3)
    assert model.training and torch.equal(first.state_norm, second.state_norm)  # dropout was off
    model.eval()
    depth_curve(model, problems, 1)
    assert not model.training
    assert not first.correct.is_inference()


def test_states_that_overflow_are_wrong_answers_not_errors():
    model, problems = small_model(), mixed_problems()
    with torch.no_grad():
        model.layers[0].mlp.norm_out.bias.fill_(math.inf)
    curve = depth_curve(model, problems, 3)
    assert not curve.correct[:, 1:].any() and not curve.state_norm[1:].isfinite().any()


def test_impossible_requests():
    model, problems = small_model(), mixed_problems()
    with pytest.raises(ValueError, match="at least 0"):
        depth_curve(model, problems, -1)
    with pytest.raises(ValueError, match="needs problems"):
        depth_curve(model, problems[:0], 3)


def test_the_lenient_grade_reads_a_number_and_does_not_ask_for_eos():
    """Answers that end otherwise than in EOS: a digit 0 or another character leaves the number as it is, 1 to 9 change it."""
    answer = torch.tensor([[SPACE, 2, 1, EOS]]).repeat(5, 1)  # 12, least significant digit first
    said = answer.clone()
    said[1, -1], said[2, -1], said[3, -1], said[4, 1] = 0, SPACE, 9, 7
    as_public = [int("".join(str(c) for c in row if c <= 9)[::-1]) == 12 for row in said.tolist()]
    strict, lenient = _graded(said, answer, torch.tensor([c in "123456789" for c in CHARACTERS]))
    assert strict.tolist() == [True, False, False, False, False]
    assert lenient.tolist() == as_public == [True, True, True, False, False]

"""One map of each kind, known in closed form; the contraction rate against the spectral radius."""

import math

import pytest
import torch
from other_model import OtherModel
from torch import nn

from looped_lib.config import ModelConfig
from looped_lib.dynamics.fixed_points import contraction_rate, fate
from looped_lib.dynamics.jacobian import dense_jacobian
from looped_lib.models.looped import LoopedTransformer

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


class Map(nn.Module):
    """A map of the plane, position by position; h_0 is fixed by the token."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def embed(self, ids):
        return torch.stack([ids + 1.0, -0.5 * ids], dim=-1).double()


def rotation(angle: float, scale: float = 1.0) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return scale * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def linear(matrix: torch.Tensor, offset: float = 1.0) -> Map:
    return Map(lambda h: h @ matrix.T + offset)


def on_circle(angle: float) -> Map:
    """Turns by `angle`, and pulls every state to the unit circle: a limit cycle that is not an ellipse through the start."""
    turn = rotation(angle)

    def step(h):
        size = h.norm(dim=-1, keepdim=True)
        return (h / size * (1 + 0.5 * (size - 1))) @ turn.T

    return Map(step)


def test_a_contraction_converges_and_repeats_itself_exactly():
    """To a fixed point away from zero the state stops changing, bit for bit, long before 10,000 loops."""
    found = fate(linear(rotation(0.3, 0.8)), IDS)
    assert found.kind == ["converged"] * 2 and found.period.tolist() == [1, 1]
    assert found.exact and found.n_loops < 1000 and len(found.residual) == found.n_loops
    assert (found.strayed < 1e-12).all()


def test_slow_convergence_is_certified_over_ten_thousand_loops():
    found = fate(linear(0.998 * torch.eye(2, dtype=torch.float64)), IDS, n_loops=10_000)
    assert found.kind == ["converged"] * 2 and found.n_loops <= 10_000
    early = fate(linear(0.998 * torch.eye(2, dtype=torch.float64)), IDS, n_loops=1000)
    assert early.kind == ["drift"] * 2  # on its way still


@pytest.mark.parametrize("period", [2, 3, 7, 20])
def test_a_cycle_and_its_period(period):
    found = fate(on_circle(2 * math.pi / period), IDS, n_loops=1000)
    assert found.kind == ["cycle"] * 2 and found.period.tolist() == [period] * 2


def test_a_long_cycle_is_found_when_it_is_exact():
    order = torch.arange(100)

    def step(h):  # a permutation of 100 points, exact in floating point
        return torch.stack([(h[..., 0] + 1) % len(order), h[..., 1]], -1)

    found = fate(Map(step), IDS, n_loops=1000)
    assert found.exact and found.kind == ["cycle"] * 2 and found.period.tolist() == [100, 100]


def test_turning_without_return_is_drift():
    found = fate(on_circle(math.sqrt(2)), IDS, n_loops=1000)
    assert found.kind == ["drift"] * 2 and found.period.tolist() == [0, 0] and not found.exact


def test_steady_growth_is_drift_though_its_residual_vanishes():
    found = fate(Map(lambda h: h + 1.0), IDS, n_loops=10_000)
    assert found.kind == ["drift"] * 2 and (found.residual[-1] < 2e-4).all()
    assert found.growth.tolist() == pytest.approx([2.0, 2.0], rel=1e-2)


@pytest.mark.parametrize("scale", [1.01, 3.0])
def test_geometric_growth_blows_up_to_infinity_or_on_the_way_there(scale):
    found = fate(linear(rotation(0.3, scale)), IDS, n_loops=1000)
    assert found.kind == ["blow_up"] * 2 and found.period.tolist() == [0, 0]


def test_sequences_are_judged_one_by_one():
    """The first row contracts, the second turns by a third of a circle."""

    def step(h):
        return torch.cat([0.5 * h[:1] + 1.0, h[1:] @ rotation(2 * math.pi / 3).T])

    found = fate(Map(step), IDS, n_loops=1000)
    assert found.kind == ["converged", "cycle"] and found.period.tolist() == [1, 3]


def test_nothing_but_residuals_is_stored(monkeypatch):
    """Of ten thousand states no more are alive at a time than the docstring says."""
    import weakref

    alive, most = weakref.WeakSet(), 0

    class Counted(torch.Tensor):
        pass

    def step(h):
        nonlocal most
        out = (h.as_subclass(torch.Tensor) @ rotation(1.0).T).as_subclass(Counted)
        alive.add(out)
        most = max(most, len(alive))
        return out

    fate(Map(step), IDS, n_loops=2000, max_period=8)
    assert most <= 8 + 4


def test_rate_is_the_spectral_radius():
    for matrix in (torch.diag(torch.tensor([0.9, 0.2])).double(), rotation(0.4, 0.7)):
        found = fate(linear(matrix), IDS, n_loops=2000)
        radius = torch.linalg.eigvals(matrix).abs().max().item()
        assert contraction_rate(found.residual).tolist() == pytest.approx([radius] * 2, rel=0.01)


@pytest.mark.parametrize("kind", ["small", "other"])
def test_rate_of_a_transformer_at_its_fixed_point(kind):
    torch.manual_seed(0)
    small = ModelConfig(d_model=16, n_heads=2, d_ff=32, max_len=8, init_std=0.15, norm_placement="post_norm")
    model = (LoopedTransformer(small) if kind == "small" else OtherModel()).double()
    found = fate(model, IDS, n_loops=4000)
    assert found.kind == ["converged"] * 2
    model.eval()
    for i in range(2):
        radius = torch.linalg.eigvals(dense_jacobian(model.step, found.state[i])).abs().max().item()
        assert contraction_rate(found.residual)[i].item() == pytest.approx(radius, abs=0.02)


def test_rate_needs_loops_above_the_floor():
    assert contraction_rate(torch.full((50, 1), 1e-9)).isnan().all()
    residual = 0.5 ** torch.arange(40.0)[:, None]
    assert contraction_rate(residual).item() == pytest.approx(0.5, rel=1e-6)


def test_too_few_loops_are_refused():
    with pytest.raises(ValueError, match="n_loops >= 4 max_period, got 32 and 100"):
        fate(linear(rotation(1.0)), IDS, n_loops=100)

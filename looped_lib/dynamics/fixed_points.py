"""What becomes of a trajectory in the end: does it converge, cycle, drift or blow up?

For each sequence (all positions together), over the second half of n loops, which begins at the anchor a = h_{n/2},

    residual   r_t = ||h_t - h_{t-1}|| / ||h_{t-1}||
    strayed    greatest ||h_t - a|| / ||a||
    growth     ||h_n|| / ||a||

    blow_up    a state is not finite, or growth > BLOW_UP: faster than the third power of t
    converged  strayed <= tol
    cycle      at each of the last max_period loops h_t is back at h_{t-p}: to relative tol, and to a tenth of the greatest
               distance on the way; the period is the smallest such p (up to max_period; a longer one is found if it is exact)
    drift      none of these: it moves on without repeating itself within max_period loops (slow growth counts here)

A small residual alone proves nothing: a state that grows by a constant each loop has r_t = 1/t. What is certified is that the
state stayed within tol of the anchor for n/2 loops. More is known if the states come back bit for bit: Phi is deterministic, so
all later states are then known too, and the search ends early with `exact` set.

Only residuals are stored: memory is that of max_period + 4 states, for any number of loops.
"""

import math
from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from looped_lib.models.lengths import row_norm
from looped_lib.models.looped import evaluating
from looped_lib.models.state import moving

KINDS = ("converged", "cycle", "drift", "blow_up")
BLOW_UP = 10.0
MAX_PERIOD = 32


@dataclass(frozen=True)
class Fate:
    """What became of each sequence of a batch."""

    kind: list[str]
    """One of KINDS."""
    period: Int[Tensor, "batch"]
    """Loops after which the state repeats itself: 1 if converged, 0 if it does not."""
    exact: bool
    """Whether the states of the whole batch came back bit for bit, so that `kind` holds for ever."""
    residual: Float[Tensor, "loop batch"]
    """r_t for t = 1, 2, ..., as many loops as it took to decide."""
    strayed: Float[Tensor, "batch"]
    """Greatest relative distance from the anchor."""
    growth: Float[Tensor, "batch"]
    """||h_n|| / ||anchor||."""
    state: Float[Tensor, "batch seq width"]
    """The last state, h_n and what is held beside it."""

    @property
    def n_loops(self) -> int:
        """Loops after which this was decided."""
        return len(self.residual)


def fate(
    model: nn.Module,
    ids: Int[Tensor, "batch seq"],
    n_loops: int = 10_000,
    tol: float = 1e-3,
    max_period: int = MAX_PERIOD,
    progress: bool = False,
) -> Fate:
    """Run up to `n_loops` loops from embed(ids) and say what became of each sequence.

    ValueError as by `check_loops`.
    """
    check_loops(n_loops, max_period)
    with torch.no_grad(), evaluating(model), tqdm(total=n_loops, desc="fixed point", disable=not progress, unit="loop") as bar:
        return _follow(model, model.embed(ids), n_loops, tol, max_period, bar)


def check_loops(n_loops: int, max_period: int = MAX_PERIOD) -> None:
    """ValueError if `fate` could not judge after `n_loops` loops: half of them must hold two of the longest cycles."""
    if max_period < 2 or n_loops < 4 * max_period:
        raise ValueError(f"fate needs max_period >= 2 and n_loops >= 4 max_period, got {max_period} and {n_loops}")


def contraction_rate(residual: Float[Tensor, "loop batch"], floor: float | None = None) -> Float[Tensor, "batch"]:
    """exp of the least-squares slope of log r_t: the factor by which the residual shrinks per loop.

    At a fixed point whose leading eigenvalue is simple it tends to the spectral radius of J. Taken over the later half of the
    loops before r_t first falls to `floor` (default: 100 machine epsilons), where rounding takes over. NaN with fewer than 3
    such loops, or with a residual among them that is not finite.
    """
    floor = 100 * torch.finfo(residual.dtype).eps if floor is None else floor
    t = torch.arange(len(residual), device=residual.device, dtype=torch.float64)[:, None]
    low = residual <= floor
    end = torch.where(low.any(0), low.int().argmax(0), len(residual))
    use = (t >= end // 2) & (t < end)
    count = use.sum(0)
    log_r = torch.where(use, residual.double(), 1.0).log()
    from_mean = torch.where(use, t - (t * use).sum(0) / count, 0.0)
    slope = (from_mean * log_r).sum(0) / from_mean.square().sum(0)
    return torch.where(count >= 3, slope.exp(), math.nan).to(residual.dtype)


def _follow(model: nn.Module, h: Tensor, n_loops: int, tol: float, max_period: int, bar: tqdm) -> Fate:
    residuals: list[Tensor] = []

    def length(h: Tensor) -> Tensor:
        return row_norm(moving(model, h))

    def advance(h: Tensor) -> Tensor:
        new = model.step(h)
        residuals.append(length(new - h) / length(h))
        bar.update()
        return new

    # First half: to the anchor, or to a state that was there before. A milestone at every power of two meets any cycle (Brent).
    repeat, milestone, milestone_loop = 0, h, 0
    for t in range(1, n_loops // 2 + 1):
        h = advance(h)
        if torch.equal(h, milestone):
            repeat = t - milestone_loop
            break
        if t & (t - 1) == 0:
            milestone, milestone_loop = h, t
            if not h.isfinite().any():
                break
    # Second half: how far it strays from the anchor, and how far the last states are from those before them.
    anchor, strayed = h, torch.zeros(len(h), device=h.device)
    far = torch.zeros(max_period, len(h), device=h.device)  # row p - 1: from the state p loops earlier
    recent: deque[Tensor] = deque(maxlen=max_period)
    over = repeat > 0 or not h.isfinite().any()  # nothing new can come
    for left in range(max(repeat, 2 * max_period) if over else n_loops - len(residuals), 0, -1):
        recent.appendleft(h)
        h = advance(h)
        strayed = torch.maximum(strayed, length(h - anchor) / length(anchor))
        if left <= max_period:
            far = torch.maximum(far, length(h - torch.stack(tuple(recent))) / length(h))
    growth = length(h) / length(anchor)
    kind, period = _kinds(h.isfinite().flatten(1).all(1), growth, strayed, far, tol, repeat)
    return Fate(kind, period, repeat > 0, torch.stack(residuals), strayed, growth, h)


def _kinds(
    finite: Tensor, growth: Tensor, strayed: Tensor, far: Tensor, tol: float, repeat: int
) -> tuple[list[str], Int[Tensor, "batch"]]:
    """Kind and period of each sequence, the kinds tested in the order of the module's docstring."""
    repeats = torch.zeros_like(far, dtype=torch.bool)
    on_the_way = far.cummax(0).values[:-1]  # a state that creeps is near its past as well, but never comes back
    repeats[1:] = (far[1:] <= tol) & (far[1:] <= 0.1 * on_the_way)
    found = torch.where(repeats.any(0), repeats.int().argmax(0) + 1, repeat)  # `repeat` may be longer than max_period
    blown, still, cycling = ~finite | (growth > BLOW_UP), strayed <= tol, found > 0
    period = torch.where(blown, 0, torch.where(still, 1, found))
    kind = torch.where(blown, 3, torch.where(still, 0, torch.where(cycling, 1, 2)))
    return [KINDS[i] for i in kind.tolist()], period

"""How many loops a training step runs: distributions over the loop count T.

Each sampler is a frozen dataclass with an exact `pmf()` of the *rounded and clipped* variable, and draws by inverting its
cumulative sum. A draw is a pure function of (seed, step): every rank, and a resumed run, gets the same depths without any
generator state to save.

    FixedLoops            T = n
    LogNormalLoops        T = clip(round(exp(mu + sigma Z)), low, high)            Z ~ N(0, 1)      [the paper]
    PoissonLoops          T = clip(Poisson(rate), low, high)
    UniformLoops          T uniform on {low, ..., high}
    LogNormalPoissonLoops T = clip(1 + Poisson(exp(tau)), low, high),  tau ~ N(log(mean) - sigma^2 / 2, sigma)     [Huginn]

Rounding is to nearest with ties to even (a set of measure zero here); clipping moves the tails' mass onto `low` and `high`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int
from scipy import special, stats

from looped_lib.core import checks, streams
from looped_lib.core.kinds import Kind

TRAINED_DEPTH = 4  # loop count of fixed-depth training, the paper's
MOST_LOOPS = 10_000  # of a training step


@dataclass(frozen=True)
class LoopSampler(Kind, ABC):
    """A distribution over loop counts low..high (both reached, `low` at least 1). A config names it by its class."""

    @property
    @abstractmethod
    def support(self) -> Int[np.ndarray, "loop"]:
        """The loop counts low, low + 1, ..., high."""

    @abstractmethod
    def pmf(self) -> Float[np.ndarray, "loop"]:
        """P(T = t) for every t in `support`; sums to 1."""

    def sample(self, seed: int, step: int, size: int | None = None) -> int | Int[np.ndarray, "size"]:
        """The loop count of training step `step` (one for the batch), or `size` counts (one per sequence)."""
        u = streams.generator(streams.LOOPS, seed, step).random(size)
        # side="right": u in [cdf[i-1], cdf[i]) maps to i, so that a value of zero probability is never drawn
        index = np.searchsorted(_cumulative(self)[:-1], u, side="right")
        counts = self.support[index]
        return int(counts) if size is None else counts

    def mean(self) -> float:
        """E[T], in loops."""
        return float(self.support @ self.pmf())

    def quantile(self, q: float) -> int:
        """The smallest t with P(T <= t) >= q."""
        return int(self.support[np.searchsorted(_cumulative(self), q - 1e-12)])


@dataclass(frozen=True)
class FixedLoops(LoopSampler):
    """Always `n` loops."""

    n: int = TRAINED_DEPTH

    def __post_init__(self):
        checks.whole(self, 1, "n", most=MOST_LOOPS)

    @property
    def support(self) -> np.ndarray:
        return np.array([self.n])

    def pmf(self) -> np.ndarray:
        return np.ones(1)


@dataclass(frozen=True, kw_only=True)
class _Clipped(LoopSampler):
    low: int = 1
    high: int = 100

    def __post_init__(self):
        checks.whole(self, 1, "low", "high", most=MOST_LOOPS)
        if self.high < self.low:
            checks.fail(self, "high", f"at least low ({self.low})")

    @property
    def support(self) -> np.ndarray:
        return np.arange(self.low, self.high + 1)

    def pmf(self) -> np.ndarray:
        upper = self._cdf(np.arange(self.low, self.high))  # P(T <= t), t = low .. high - 1; beyond that it is 1
        return np.diff(np.concatenate([[0.0], upper, [1.0]]))

    @abstractmethod
    def _cdf(self, t: np.ndarray) -> np.ndarray:
        """P(unclipped T <= t)."""


@dataclass(frozen=True, kw_only=True)
class LogNormalLoops(_Clipped):
    """The paper's distribution; `mu`, `sigma` are those of log T. Defaults: mean 9.4, median 7, 95 % at most 23."""

    mu: float = 2.0
    sigma: float = 0.7

    def __post_init__(self):
        super().__post_init__()
        checks.number(self, 0, math.inf, "sigma", open_start=True)
        checks.number(self, -math.inf, math.inf, "mu", open_start=True)

    def _cdf(self, t: np.ndarray) -> np.ndarray:
        return stats.norm.cdf((np.log(t + 0.5) - self.mu) / self.sigma)


@dataclass(frozen=True, kw_only=True)
class PoissonLoops(_Clipped):
    """Poisson counts with mean `rate` before clipping."""

    rate: float = 5.0

    def __post_init__(self):
        super().__post_init__()
        checks.number(self, 0, math.inf, "rate", open_start=True)

    def _cdf(self, t: np.ndarray) -> np.ndarray:
        return special.pdtr(t, self.rate)


@dataclass(frozen=True, kw_only=True)
class UniformLoops(_Clipped):
    """Every count from `low` to `high` equally often."""

    high: int = 16

    def _cdf(self, t: np.ndarray) -> np.ndarray:
        return (t - self.low + 1) / (self.high - self.low + 1)


@dataclass(frozen=True, kw_only=True)
class LogNormalPoissonLoops(_Clipped):
    """Huginn's mixture (Geiping et al. 2025): a Poisson whose log-rate is normal, plus one. Mean about `mean` + 1."""

    high: int = 200
    mean_rate: float = 32.0
    sigma: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        checks.number(self, 0, math.inf, "mean_rate", "sigma", open_start=True)

    def _cdf(self, t: np.ndarray) -> np.ndarray:
        # E_z[pdtr(t - 1, rate(z))] by the trapezoid rule, spectrally accurate for a Gaussian weight that vanishes at the ends
        z = np.linspace(-10.0, 10.0, 2001)
        weight = stats.norm.pdf(z) * (z[1] - z[0])
        rate = np.exp(np.log(self.mean_rate) - self.sigma**2 / 2 + self.sigma * z)
        counts = np.maximum(t[:, None] - 1, 0)
        return np.where(t >= 1, special.pdtr(counts, rate) @ weight, 0.0)


@cache
def _cumulative(sampler: LoopSampler) -> Float[np.ndarray, "loop"]:
    """P(T <= t) over the support. Kept, because Huginn's mixture takes longer to integrate than a training step may wait."""
    return np.cumsum(sampler.pmf())

"""What several seeds say: a mean with its interval, and tests of a difference.

With n seeds, mean m and standard deviation s, the 95 % interval is

    m +- t(0.975, n - 1) s / sqrt(n)

A difference between two groups of runs is tested on the seeds they share (paired t-test on the differences), or by Welch's
t-test if they share fewer than two.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
_NO_SPREAD = 1e-12  # far below one problem in a million, far above the rounding of a difference


class Interval(NamedTuple):
    """A mean over seeds and its 95 % interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean difference, its 95 % interval, the p of no difference, and which test gave them (or why none could)."""

    mean: float
    low: float
    high: float
    p: float
    test: str


def interval(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
    """Mean and Student's 95 % interval over seeds, cut off at `within` ((0, 1) for proportions); one seed has NaN bounds.

    ValueError without values.
    """
    if len(values) == 0:
        raise ValueError("interval needs the value of at least one seed")
    x = np.asarray(values, dtype=float)
    if len(x) == 1:
        return Interval(float(x[0]), math.nan, math.nan)
    half = stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * stats.sem(x)
    low, high = np.clip([x.mean() - half, x.mean() + half], *within)
    return Interval(float(x.mean()), float(low), float(high))


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """`ours` less `theirs`, both {seed: value}: paired if they share two seeds or more (then over those), Welch's otherwise.

    Bounds and p are NaN, and `test` says why, with one seed, or without any spread over seeds.
    """
    shared = sorted(ours.keys() & theirs.keys())
    paired = len(shared) >= 2
    a = np.array([ours[seed] for seed in shared] if paired else list(ours.values()), dtype=float)
    b = np.array([theirs[seed] for seed in shared] if paired else list(theirs.values()), dtype=float)
    mean = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Difference(mean, math.nan, math.nan, math.nan, "none: needs two seeds of each")
    if max(map(np.ptp, [a - b] if paired else [a, b])) < _NO_SPREAD:
        return Difference(mean, math.nan, math.nan, math.nan, "none: no spread over seeds")
    found = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    low, high = found.confidence_interval(LEVEL)
    name = f"paired t, {len(shared)} shared seeds" if paired else f"Welch's t, {len(a)} and {len(b)} seeds"
    return Difference(mean, float(low), float(high), float(found.pvalue), name)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's p values, which keep the chance of any false finding among all of them: with p_(1) <= ... <= p_(m),

        p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j))

    A NaN is no test: it stays NaN and does not count.
    """
    adjusted, largest = [math.nan] * len(p), 0.0
    tested = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    for rank, i in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted

"""Intervals and tests over seeds are scipy's; where there is nothing to test, NaN and the reason."""

import math

import numpy as np
import pytest
from scipy import stats

from looped_lib.runs.statistics import difference, holm, interval


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_interval_is_students(n):
    x = np.random.default_rng(n).normal(size=n)
    expected = stats.t.interval(0.95, n - 1, loc=x.mean(), scale=x.std(ddof=1) / math.sqrt(n))
    assert interval(x) == pytest.approx((x.mean(), *expected), rel=1e-12)
    assert interval(list(x))[1:] == pytest.approx(tuple(stats.ttest_1samp(x, 0).confidence_interval(0.95)), rel=1e-12)


def test_the_interval_of_proportions_stays_between_0_and_1():
    mean, low, high = interval([0.1, 0.9], within=(0, 1))
    assert (mean, low, high) == (0.5, 0, 1)
    assert interval([1.0, 1.0, 1.0], within=(0, 1)) == (1, 1, 1)


def test_one_seed_has_no_interval_and_none_no_mean():
    one = interval([0.25])
    assert one.mean == 0.25 and math.isnan(one.low) and math.isnan(one.high)
    with pytest.raises(ValueError, match="at least one seed"):
        interval([])


def test_it_covers_the_truth_19_times_in_20():
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    covered = np.mean([i.low <= 0 <= i.high for i in map(interval, draws)])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_shared_seeds_are_paired_in_any_order():
    a, b = {0: 0.9, 1: 0.8, 2: 0.95, 7: 0.0}, {2: 0.7, 1: 0.65, 0: 0.6, 9: 1.0}
    found = difference(a, b)
    expected = stats.ttest_rel([0.9, 0.8, 0.95], [0.6, 0.65, 0.7])
    assert found.test == "paired t, 3 shared seeds" and found.mean == pytest.approx((0.3 + 0.15 + 0.25) / 3)
    assert (*found[1:3], found.p) == pytest.approx((*expected.confidence_interval(0.95), expected.pvalue), rel=1e-9)


def test_other_seeds_are_compared_by_welch():
    a, b = {0: 0.9, 1: 0.8, 2: 0.95}, {2: 0.5, 3: 0.7}
    found = difference(a, b)
    expected = stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False)
    assert found.test == "Welch's t, 3 and 2 seeds"
    assert (*found[1:3], found.p) == pytest.approx((*expected.confidence_interval(0.95), expected.pvalue), rel=1e-9)


@pytest.mark.parametrize(
    "a, b, why",
    [
        ({0: 1.0}, {0: 0.5}, "two seeds"),
        ({0: 1.0, 1: 0.5}, {0: 0.25}, "two seeds"),
        ({0: 1.0, 1: 1.0}, {0: 0.3, 1: 0.3}, "no spread"),
        ({0: 0.3, 1: 0.6}, {0: 0.1, 1: 0.4}, "no spread"),  # the differences are equal up to rounding
        ({0: 1.0, 1: 1.0}, {2: 0.0, 3: 0.0}, "no spread"),
    ],
)
def test_what_cannot_be_tested_says_why(a, b, why):
    found = difference(a, b)
    assert why in found.test and all(map(math.isnan, found[1:4]))
    assert found.mean == pytest.approx(np.mean(list(a.values())) - np.mean(list(b.values())))


def test_holm():
    """The example of Holm (1979): the smallest of m counts m times, the next m - 1 times, and none falls below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []
    with_none = holm([0.02, math.nan, 0.03])
    assert with_none[0] == 0.04 and math.isnan(with_none[1]) and with_none[2] == 0.04

"""From numbers over seeds to a verdict, rule by rule."""

import math

import pytest

from looped_lib.report.verdicts import Rule, decide


@pytest.mark.parametrize(
    "rule, values, holds",
    [
        (Rule.EACH, [2], True),
        (Rule.EACH, [2, 3, math.inf], True),
        (Rule.EACH, [0, -1], False),
        (Rule.EACH, [2, 0, 2], None),  # although the mean passes
        (Rule.EACH, [], None),
        (Rule.ALWAYS, [2, 2], None),
        (Rule.ALWAYS, [2, 2, 2], True),
        (Rule.ALWAYS, [2, 2, 0.9], False),
        (Rule.ALWAYS, [0], False),
        (Rule.DIFFERENCE, [5], None),
        (Rule.DIFFERENCE, [5, 5.1, 5.2], True),
        (Rule.DIFFERENCE, [0.1, 5, 9], None),
        (Rule.DIFFERENCE, [-5, -5.1, -5.2], False),
        (Rule.DIFFERENCE, [5, math.inf, 5], None),
    ],
)
def test_the_rules(rule, values, holds):
    assert decide(values, lambda x: x > 1, rule) is holds


def test_a_bar_from_below():
    assert decide([0.1, 0.11, 0.12], lambda x: x < 1, Rule.DIFFERENCE) is True

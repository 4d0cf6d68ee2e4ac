"""From a claim's number, one per seed, to its verdict.

    EACH        yes if the number passes its bar with every seed, no if with none, else undecided
    ALWAYS      for claims that something holds: no if one seed fails; yes if all of at least SEEDS pass; else undecided
    DIFFERENCE  for comparisons: yes if the whole 95 % interval over seeds passes, no if none of it does, else undecided

Without a number (nothing that was run learned its task, say) the verdict is undecided, and with one seed so is a DIFFERENCE.
Intervals are not widened for the number of questions: of twenty comparisons without any effect, one is expected to be decided.
"""

import math
from collections.abc import Callable, Sequence
from enum import Enum, auto

from looped_lib.runs.statistics import interval

SEEDS = 3  # of a claim that something always holds: the paper's one run does not tell "always" from "once"


class Rule(Enum):
    """How numbers over seeds become a verdict."""

    EACH = auto()
    ALWAYS = auto()
    DIFFERENCE = auto()


def decide(values: Sequence[float], passes: Callable[[float], bool], rule: Rule) -> bool | None:
    """Whether the claim holds; None: undecided. `passes` is true on one side of a bar."""
    passed = [passes(value) for value in values]
    if rule is Rule.DIFFERENCE:
        if len(values) < 2 or not all(map(math.isfinite, values)):
            return None
        _, *bounds = interval(values)
        passed = [passes(bound) for bound in bounds]
    if not passed:
        return None
    if rule is Rule.ALWAYS:
        return False if not all(passed) else True if len(passed) >= SEEDS else None
    return passed[0] if len(set(passed)) == 1 else None

"""A claim, what was measured of it, and its verdict: the rows of claims.json.

A claim names an experiment, a number per seed, the bar that number has to pass and the rule over seeds (`verdicts`). Nothing is
typed in: where the run folders do not hold the experiment, the row says "not run".
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from looped_lib.report.evidence import Evidence
from looped_lib.report.provenance import differences
from looped_lib.report.verdicts import Rule, decide
from looped_lib.runs.folders import Run
from looped_lib.runs.statistics import interval

NOT_RUN = "not run"
UNDECIDED = "undecided"
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
CONFIRMED, NOT_CONFIRMED = "confirmed", "not confirmed"  # of questions that the paper does not ask


@dataclass(frozen=True)
class Finding:
    """What a claim's runs say."""

    values: Sequence[float]
    """The claim's number, one per seed."""
    holds: bool | None
    """Whether the claim holds; None where the runs do not decide it."""
    text: str
    """The numbers behind it, in words."""
    runs: Sequence[Path]
    """Folders of the runs."""
    within: tuple[float, float] = (-math.inf, math.inf)
    """Bounds of the number ((0, 1) for a share)."""


@dataclass(frozen=True)
class Claim:
    """A sentence that runs can confirm."""

    key: str
    section: str
    sentence: str
    paper: str
    """What the paper reports; empty for a question of ours."""
    number: str
    """What the number is, with its unit and the bar it has to pass."""
    measure: Callable[[Evidence, str], Finding | None]
    """The finding of a size, or None where runs are missing."""
    sizes: tuple[str, ...] = ("cpu", "paper")


def judge(claims: Iterable[Claim], evidence: Evidence) -> list[dict[str, Any]]:
    """claims.json: a row per claim and size, with claim, paper, measured, number, value, interval, seeds, size, verdict, runs.

    `differs` says in what the making of those runs differs from this project (see `provenance`).
    """
    return [_row(claim, size, claim.measure(evidence, size), evidence) for claim in claims for size in claim.sizes]


def shared(groups: Mapping[str, Mapping[int, Run]]) -> list[int]:
    """Seeds that all groups have; none if there are no groups."""
    return sorted(set.intersection(*(set(seeds) for seeds in groups.values()))) if groups else []


def over_seeds(
    groups: Mapping[str, Mapping[int, Run]],
    number: Callable[[dict[str, Run]], float | None],
    passes: Callable[[float], bool],
    text: Callable[[str, Sequence[Run]], str],
    rule: Rule = Rule.EACH,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Finding | None:
    """The finding of `number`({group: run}) over the seeds that all groups share, None being no number.

    `text` says a group's runs in words. None if the groups share no seed.
    """
    seeds = shared(groups)
    if not seeds:
        return None
    numbers = [number({name: runs[seed] for name, runs in groups.items()}) for seed in seeds]
    values = [value for value in numbers if value is not None]
    words = "; ".join(text(name, [runs[seed] for seed in seeds]) for name, runs in groups.items())
    folders = [runs[seed].folder for runs in groups.values() for seed in seeds]
    return Finding(values, decide(values, passes, rule), words, folders, within)


def _row(claim: Claim, size: str, finding: Finding | None, evidence: Evidence) -> dict[str, Any]:
    row = {"key": claim.key, "section": claim.section, "claim": claim.sentence, "paper": claim.paper}
    row |= {"number": claim.number, "size": size}
    if finding is None:
        return (
            row
            | {"measured": NOT_RUN, "value": None, "interval": None, "seeds": 0, "verdict": NOT_RUN}
            | {"runs": [], "differs": []}
        )
    yes, no = (REPRODUCED, NOT_REPRODUCED) if claim.paper else (CONFIRMED, NOT_CONFIRMED)
    known = finding.values and all(map(math.isfinite, finding.values))  # JSON has no infinity; the words have it
    mean, *bounds = interval(finding.values, finding.within) if known else [math.nan] * 3
    return row | {
        "measured": finding.text,
        "value": mean if known else None,
        "interval": bounds if all(map(math.isfinite, bounds)) else None,
        "seeds": len(finding.values),
        "verdict": UNDECIDED if finding.holds is None else yes if finding.holds else no,
        "runs": list(map(evidence.name, finding.runs)),
        "differs": differences(map(evidence.made, finding.runs)),
    }

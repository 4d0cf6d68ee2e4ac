"""A claim, what was measured of it, and its verdict, as rows of a table and as claims.json.

A claim names an experiment and a number per seed; it holds if that number passes its bar. Nothing is typed in: where the run
folders do not hold the experiment, the row says "not run".
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from looped_lib.report.evidence import Evidence, Run
from looped_lib.seeds import interval

NOT_RUN = "not run"
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
CONFIRMED, NOT_CONFIRMED = "confirmed", "not confirmed"  # of questions that the paper does not ask
_GREEN, _RED, _GREY = "#009E73", "#D55E00", "#777777"
_COLOURS = {REPRODUCED: _GREEN, CONFIRMED: _GREEN, NOT_REPRODUCED: _RED, NOT_CONFIRMED: _RED, NOT_RUN: _GREY}


@dataclass(frozen=True)
class Finding:
    """What a claim's runs say."""

    values: Sequence[float]
    """The claim's number, one per seed."""
    holds: bool
    """Whether it passes."""
    text: str
    """The numbers behind it, in words."""
    runs: Sequence[str]
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
    """claims.json: a row per claim and size, with claim, paper, measured, number, value, interval, seeds, size, verdict, runs."""
    return [_row(claim, size, claim.measure(evidence, size)) for claim in claims for size in claim.sizes]


def table(rows: Sequence[Mapping[str, Any]], links: str = "../../") -> pd.DataFrame:
    """The rows for people. Runs are links, `links` being the way from the page to the project's folder."""
    shown = []
    for row in rows:
        value = "" if row["value"] is None else f"{row['value']:.3g}"
        if row["interval"]:
            value += f" [{row['interval'][0]:.3g}, {row['interval'][1]:.3g}]"
        runs = " ".join(f'<a href="{links}{folder}">{i}</a>' for i, folder in enumerate(row["runs"], 1))
        cells = (row[name] for name in ("section", "claim", "paper", "measured"))
        shown.append([*cells, value, row["size"], row["seeds"], row["verdict"], runs])
    columns = ["section", "claim", "paper", "measured", "number [95 %]", "size", "seeds", "verdict", "runs"]
    return pd.DataFrame(shown, columns=columns)


def to_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """`table` as HTML, verdicts in colour."""
    styled = table(rows).style.hide(axis="index").map(lambda verdict: f"color: {_COLOURS[verdict]}", subset="verdict")
    cells = [{"selector": "td, th", "props": "text-align: left; vertical-align: top; white-space: normal"}]
    return styled.set_table_styles(cells).to_html()


def shared(groups: Mapping[str, Mapping[int, Run]]) -> list[int]:
    """Seeds that all groups have; none if there are no groups."""
    return sorted(set.intersection(*(set(seeds) for seeds in groups.values()))) if groups else []


def over_seeds(
    groups: Mapping[str, Mapping[int, Run]],
    number: Callable[[dict[str, Run]], float],
    passes: Callable[[float], bool],
    text: Callable[[str, Sequence[Run]], str],
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Finding | None:
    """The finding of `number`({group: run}) over the seeds that all groups share; it holds if the mean over seeds `passes`.

    `text` says a group's runs in words. None if the groups share no seed.
    """
    seeds = shared(groups)
    if not seeds:
        return None
    values = [number({name: runs[seed] for name, runs in groups.items()}) for seed in seeds]
    words = "; ".join(text(name, [runs[seed] for seed in seeds]) for name, runs in groups.items())
    folders = [runs[seed].folder for runs in groups.values() for seed in seeds]
    return Finding(values, passes(sum(values) / len(values)), words, folders, within)


def percent(values: Iterable[float]) -> str:
    """The mean of shares, in per cent."""
    values = list(values)
    return f"{100 * sum(values) / len(values):.1f} %"


def _row(claim: Claim, size: str, finding: Finding | None) -> dict[str, Any]:
    row = {"key": claim.key, "section": claim.section, "claim": claim.sentence, "paper": claim.paper}
    row |= {"number": claim.number, "size": size}
    if finding is None:
        return row | {"measured": NOT_RUN, "value": None, "interval": None, "seeds": 0, "verdict": NOT_RUN, "runs": []}
    mean, low, high = interval(finding.values, finding.within)
    words = (REPRODUCED, NOT_REPRODUCED) if claim.paper else (CONFIRMED, NOT_CONFIRMED)
    return row | {
        "measured": finding.text,
        "value": mean,
        "interval": None if math.isnan(low) else [low, high],
        "seeds": len(finding.values),
        "verdict": words[0] if finding.holds else words[1],
        "runs": list(finding.runs),
    }

"""What the paper claims of fine-tuned Ouro (section 5), and how each claim is measured.

Size `paper`: Ouro-1.4B, the average of five benchmarks at 4 and 8 loops, by notebook 06; one model of each kind, so no interval.
Size `cpu`: the tiny Ouro of notebook 05 on held-out word problems, pre-trained at 4 loops; over seeds.
"""

from collections.abc import Callable

import pandas as pd

from looped_lib.ouro.paper import STARS, TASKS
from looped_lib.report.claims import Claim, Finding, over_seeds
from looped_lib.report.evidence import Evidence, Tuned

T, TWICE = 4, 8
_Averages = dict[str, dict[int, float]]
_Number = Callable[[_Averages], float]
_Bar = Callable[[float], bool]


def averages(table: pd.DataFrame) -> _Averages:
    """{kind of model: {loop count: mean over the five benchmarks}}, where all five were run; `stars-seed0` is a `stars`."""
    ours = table[table["task"].isin(TASKS)]
    found: _Averages = {}
    for (model, depth), cells in ours.groupby(["model", "depth"]):
        if set(cells["task"]) == set(TASKS):
            found.setdefault(model.split("-")[0], {})[int(depth)] = float(cells["value"].mean())
    return found


PAPER = averages(STARS)


def drop(accuracy: dict[int, float]) -> float:
    """From the greatest accuracy to that at 8 loops."""
    return max(accuracy.values()) - accuracy[TWICE]


def _claim(key: str, sentence: str, paper: str, number: str, of: _Number, passes: _Bar, *modes: str) -> Claim:
    def measure(evidence: Evidence, size: str) -> Finding | None:
        if size == "paper":
            return _full_size(evidence, modes, of, passes)
        groups = {mode: evidence.tuned(size, mode) for mode in modes}
        return over_seeds(groups, lambda runs: of({m: r.accuracy for m, r in runs.items()}), passes, _say, within=(-1, 1))

    return Claim(key, "5", sentence, paper, number, measure)


def _full_size(evidence: Evidence, modes: tuple[str, ...], of: _Number, passes: _Bar) -> Finding | None:
    table = evidence.benchmarks()
    found = averages(table)
    if not all({T, TWICE} <= set(found.get(mode, {})) for mode in modes):
        return None
    value = of(found)
    text = "; ".join(f"{m} {100 * found[m][T]:.2f} % at {T} loops, {100 * found[m][TWICE]:.2f} % at {TWICE}" for m in modes)
    return Finding([value], passes(value), text, sorted(set(table["folder"])), within=(-1, 1))


def _say(mode: str, runs: list[Tuned]) -> str:
    def mean(depth: int) -> str:
        return f"{100 * sum(run.accuracy[depth] for run in runs) / len(runs):.1f} %"

    return f"{mode} {mean(T)} at {T} loops, {mean(TWICE)} at {TWICE}"


def _points(x: float) -> str:
    return f"{100 * x:.2f} points"


CLAIMS = (
    _claim(
        "ouro_base_falls",
        "Looped twice as often as in pre-training, Ouro loses accuracy.",
        f"base: {_points(drop(PAPER['base']))} from its peak at 8 loops",
        "base: from its peak to 8 loops; loses above 0.05",
        lambda a: drop(a["base"]),
        lambda x: x > 0.05,
        "base",
    ),
    _claim(
        "ouro_sft_falls",
        "Ordinary fine-tuning does not help.",
        f"SFT: {_points(drop(PAPER['sft']))} from its peak at 8 loops, base {_points(drop(PAPER['base']))}",
        "fall of SFT less that of the base; no help above -0.05",
        lambda a: drop(a["sft"]) - drop(a["base"]),
        lambda x: x > -0.05,
        "base",
        "sft",
    ),
    _claim(
        "ouro_stars_holds",
        "Fine-tuned with STARS it loses less than the base and less than after ordinary fine-tuning.",
        f"STARS: {_points(drop(PAPER['stars']))} from its peak at 8 loops",
        "the smaller fall of base and SFT less that of STARS; holds above 0",
        lambda a: min(drop(a["base"]), drop(a["sft"])) - drop(a["stars"]),
        lambda x: x > 0,
        "base",
        "sft",
        "stars",
    ),
    _claim(
        "ouro_stars_peak",
        "And its peak is higher than after ordinary fine-tuning.",
        f"STARS {_points(max(PAPER['stars'].values()) - max(PAPER['sft'].values()))} above SFT",
        "peak of STARS less peak of SFT; higher above 0",
        lambda a: max(a["stars"].values()) - max(a["sft"].values()),
        lambda x: x > 0,
        "sft",
        "stars",
    ),
)

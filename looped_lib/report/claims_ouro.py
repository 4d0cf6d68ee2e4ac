"""What the paper claims of fine-tuned Ouro (section 5), and how each claim is measured.

Size `paper`: Ouro-1.4B, the average of five benchmarks at 4 and 8 loops, by notebook 06; one model of each kind, so no interval.
Size `cpu`: the tiny Ouro of notebook 05 on held-out word problems, pre-trained at 4 loops; over seeds.
"""

from collections.abc import Callable

import pandas as pd

from looped_lib.ouro.evaluate.paper import STARS, STATED
from looped_lib.report.claims import Claim, Finding, over_seeds
from looped_lib.report.evidence import Evidence, Tuned
from looped_lib.report.measures import five_task_means
from looped_lib.report.verdicts import Rule
from looped_lib.samplers import TRAINED_DEPTH

T, TWICE = TRAINED_DEPTH, 2 * TRAINED_DEPTH
_Averages = dict[str, dict[int, float]]
_Number = Callable[[_Averages], float]
_Bar = Callable[[float], bool]


def averages(table: pd.DataFrame) -> _Averages:
    """{kind of model: {loop count: mean over the five benchmarks}}, where all five were run; `stars-seed0` is a `stars`.

    Of several models of a kind the first that was measured at both loop counts, so that a fall is one model's.
    """
    found: _Averages = {}
    for model, rows in five_task_means(table).groupby("model"):
        means = dict(zip(rows["depth"].astype(int), rows["value"].astype(float), strict=True))
        if {T, TWICE} <= set(means):
            found.setdefault(model.split("-")[0], means)
    return found


PAPER = averages(STARS)


def drop(accuracy: dict[int, float]) -> float:
    """From the greatest accuracy to that at 8 loops."""
    return max(accuracy.values()) - accuracy[TWICE]


def _claim(
    key: str, sentence: str, paper: str, number: str, of: _Number, passes: _Bar, *modes: str, rule: Rule = Rule.DIFFERENCE
) -> Claim:
    """A claim of section 5; of ours, without a word in `paper`, there is only what the tiny Ouro says."""

    def measure(evidence: Evidence, size: str) -> Finding | None:
        if size == "paper":
            return _full_size(evidence, modes, of, passes)
        tuned = {mode: evidence.tuned(size, mode) for mode in modes}
        groups = {mode: {s: r for s, r in runs.items() if {T, TWICE} <= set(r.accuracy)} for mode, runs in tuned.items()}
        return over_seeds(groups, lambda runs: of({m: r.accuracy for m, r in runs.items()}), passes, _say, rule, within=(-1, 1))

    return Claim(key, "5", sentence, paper, number, measure, sizes=("cpu", "paper") if paper else ("cpu",))


def _full_size(evidence: Evidence, modes: tuple[str, ...], of: _Number, passes: _Bar) -> Finding | None:
    table = evidence.benchmarks()
    found = averages(table)
    if not set(modes) <= set(found):
        return None
    value = of(found)
    text = "; ".join(f"{m} {100 * found[m][T]:.2f} % at {T} loops, {100 * found[m][TWICE]:.2f} % at {TWICE}" for m in modes)
    used = table[table["model"].str.split("-").str[0].isin(modes)]
    return Finding([value], passes(value), text, sorted(set(used["folder"])), within=(-1, 1))


def _say(mode: str, runs: list[Tuned]) -> str:
    def mean(depth: int) -> str:
        return f"{100 * sum(run.accuracy[depth] for run in runs) / len(runs):.1f} %"

    return f"{mode} {mean(T)} at {T} loops, {mean(TWICE)} at {TWICE}"


def _points(x: float) -> str:
    return f"{100 * x:.2f} points"


def _fall(mode: str) -> str:
    return f"{mode} {_points(drop(PAPER[mode]))}"


def _above(mode: str) -> float:
    return max(PAPER["stars"].values()) - max(PAPER[mode].values())


OVER = "from 4 to 8 loops, on average over five tasks"
CLAIMS = (
    _claim(
        "ouro_base_falls",
        "Looped twice as often as in pre-training, Ouro loses accuracy.",
        f"{_fall('base')} {OVER}; in its text {STATED['base falls']} from its own peak",
        "base: from its peak to 8 loops; loses above 0.05",
        lambda a: drop(a["base"]),
        lambda x: x > 0.05,
        "base",
        rule=Rule.EACH,
    ),
    _claim(
        "ouro_sft_falls",
        "After ordinary fine-tuning Ouro loses as much accuracy at twice the loops as before.",
        f"{_fall('sft')}, {_fall('base')} {OVER}",
        "fall of SFT less that of the base; no help above -0.05",
        lambda a: drop(a["sft"]) - drop(a["base"]),
        lambda x: x > -0.05,
        "base",
        "sft",
    ),
    _claim(
        "ouro_stars_holds",
        "Fine-tuned with STARS, Ouro loses less at twice the loops than the base and than after ordinary fine-tuning.",
        f"{_fall('stars')} {OVER}; in its text {STATED['STARS falls']} from its own peak",
        "the smaller fall of base and SFT less that of STARS; holds above 0",
        lambda a: min(drop(a["base"]), drop(a["sft"])) - drop(a["stars"]),
        lambda x: x > 0,
        "base",
        "sft",
        "stars",
    ),
    _claim(
        "ouro_stars_peak",
        "Fine-tuned with STARS, Ouro's best accuracy is higher than that of the base.",
        f"{_points(_above('base'))} above it ({_points(_above('sft'))} above SFT) at 4 loops, on average over five tasks; "
        f"in its text {STATED['STARS above base']}",
        "peak of STARS less peak of the base; higher above 0",
        lambda a: max(a["stars"].values()) - max(a["base"].values()),
        lambda x: x > 0,
        "base",
        "stars",
    ),
    _claim(
        "ouro_penalty_adds",
        "At twice the loops, Ouro fine-tuned with the penalty keeps more accuracy than with random loop counts alone.",
        "",
        "accuracy at 8 loops of STARS less that of random loops; more above 0",
        lambda a: a["stars"][TWICE] - a["random"][TWICE],
        lambda x: x > 0,
        "random",
        "stars",
    ),
)

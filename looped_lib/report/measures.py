"""Numbers of a run that claims are made of, and the words for them.

Addition is trained at T = 4, or at random T with a mean near it, and measured to 100 loops.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from looped_lib.ouro.evaluate.paper import TASKS
from looped_lib.report.evidence import Evidence
from looped_lib.runs.folders import Run
from looped_lib.samplers import TRAINED_DEPTH
from looped_lib.studies.sizes import Configs

TRAINED, DEEPEST = TRAINED_DEPTH, 100
LEARNED = 0.5  # accuracy at the trained depth, below which a run says nothing about depth

Number = Callable[[dict[str, Run]], float | None]


def deep(evidence: Evidence, configs: Configs) -> dict[str, Mapping[int, Run]]:
    """Runs by group and seed, of those that were measured to 100 loops."""
    return {name: evidence.of(config, DEEPEST) for name, config in configs.items()}


def growth(run: Run) -> float:
    """Token norm at 100 loops over that at 4."""
    return run.state_norm[DEEPEST] / run.state_norm[TRAINED]


def learned(run: Run) -> bool:
    """Whether the run solves its task at the trained depth; if not, it says nothing about other depths."""
    return run.accuracy[TRAINED] >= LEARNED


def where_learned(number: Number) -> Number:
    """`number`, or none where a run has not learned the task."""
    return lambda runs: number(runs) if all(map(learned, runs.values())) else None


def named(name: str, runs: Sequence[Run]) -> str:
    """The name, with how many of the runs never learned the task."""
    never = sum(not learned(run) for run in runs)
    return f"{name} (never learned with {never} of {len(runs)} seeds)" if never else name


def kept(run: Run, last: int = DEEPEST) -> float:
    """The lowest accuracy from 4 to `last` loops, as a share of that at 4."""
    return run.lowest(TRAINED, last) / run.accuracy[TRAINED]


def percent(values: Iterable[float]) -> str:
    """The mean of shares, in per cent."""
    values = list(values)
    return f"{100 * sum(values) / len(values):.1f} %"


def at(runs: Sequence[Run], depth: int) -> str:
    """Mean accuracy of the runs at a depth."""
    return percent(run.accuracy[depth] for run in runs)


def say_at(name: str, runs: Sequence[Run], depth: int) -> str:
    """The same as words."""
    return f"{name} {at(runs, depth)} at {depth} loops"


def five_task_means(table: pd.DataFrame) -> pd.DataFrame:
    """model, depth, value: the mean over the paper's five benchmarks, where all are there; `table` as from `headlines`."""
    table = table[table["task"].isin(TASKS)]
    means = table.groupby(["model", "depth"], as_index=False).agg(value=("value", "mean"), n=("task", "nunique"))
    return means[means["n"] == len(TASKS)].sort_values(["model", "depth"])

"""Published accuracies of Ouro-1.4B by loop count, as tidy tables, and our rows beside them.

    STARS   arXiv 2605.26733, fine-tuning on mathematics: five benchmarks at 4 and 8 loops, by lm-eval on vLLM
    OURO    arXiv 2510.25741, the model as published: three benchmarks at 1 to 8 loops

Their rows have the columns of `tables.headlines` that are published: model, task, depth, value (0 to 1).
"""

import math
from typing import Any

import pandas as pd

TASKS = ("gsm8k", "minerva_math500", "asdiv", "svamp", "amc23")
NOT_RUN = "not run"

_STARS = {
    ("base", 4): (75.21, 59.60, 76.57, 75.67, 50.0),
    ("base", 8): (58.23, 40.80, 70.07, 66.33, 40.0),
    ("sft", 4): (80.06, 64.60, 83.47, 76.67, 47.5),
    ("sft", 8): (60.05, 39.20, 75.10, 68.00, 22.5),
    ("stars", 4): (81.96, 67.40, 84.73, 84.33, 52.5),
    ("stars", 8): (74.45, 54.80, 82.52, 81.00, 35.0),
}
# From the paper's text: falls from a model's own peak to 8 loops, and by how much the peak of STARS is above the base's. They
# fit the column of GSM8K with peaks at loop counts that the table does not have.
STATED = {"base falls": 20.47, "STARS falls": 8.26, "STARS above base": 4.01}  # points
_OURO = {
    "mmlu": (41.21, 60.43, 66.71, 67.45, 66.64, 65.77, 65.28, 64.49),
    "arc_challenge": (37.63, 54.86, 59.47, 60.92, 58.96, 59.73, 58.96, 58.19),
    "hellaswag": (55.24, 71.15, 74.07, 74.29, 73.72, 72.77, 72.35, 71.60),
}


def _tidy(rows: list[tuple[str, str, int, float]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["model", "task", "depth", "value"])
    return table.assign(value=table["value"] / 100)


STARS = _tidy([(m, task, d, v) for (m, d), row in _STARS.items() for task, v in zip(TASKS, row, strict=True)])
OURO = _tidy([("base", task, d, v) for task, row in _OURO.items() for d, v in enumerate(row, start=1)])


def beside_paper(table: pd.DataFrame) -> pd.DataFrame:
    """Per cent by task and on average: each row of the paper's table, and under it ours (`table`, as from `tables.headlines`).

    Ours are the rows of the same kind of model (`stars-seed0` is a `stars`) at the same depth, with their standard errors; other
    models and depths follow, if they were measured on any of the five tasks. An average is of all five or not there.
    """
    ours = table[table["task"].isin(TASKS)]
    of_ours = {key: cells for key, cells in ours.groupby(["model", "depth"], sort=True)}
    rows = []
    for (kind, depth), cells in STARS.groupby(["model", "depth"], sort=False):
        rows.append(_row("paper", kind, depth, cells))
        same = [key for key in of_ours if key[0].split("-")[0] == kind and key[1] == depth]
        rows += [_row("ours", *key, of_ours.pop(key)) for key in same] or [_row("ours", kind, depth, ours[:0])]
    rows += [_row("ours", *key, cells) for key, cells in of_ours.items()]
    return pd.DataFrame(rows).set_index(["model", "T", "row"])


def _row(whose: str, model: str, depth: int, cells: pd.DataFrame) -> dict[str, Any]:
    values = cells.set_index("task")
    return {"model": model, "T": depth, "row": whose, **{t: _percent(values, t) for t in TASKS}, "avg": _average(values)}


def _percent(values: pd.DataFrame, task: str) -> str:
    if task not in values.index:
        return NOT_RUN
    value, error = 100 * values.loc[task, "value"], 100 * values.get("stderr", pd.Series()).get(task, math.nan)
    return f"{value:.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}")


def _average(values: pd.DataFrame) -> str:
    return f"{100 * values.loc[list(TASKS), 'value'].mean():.2f}" if set(TASKS) <= set(values.index) else NOT_RUN

"""What an evaluation measured, as tables; the folder's files are described in `cells`."""

import glob
import json
from pathlib import Path
from typing import Any

import pandas as pd

from looped_lib.core.files import read_record
from looped_lib.ouro.evaluate.cells import read_cell

# The accuracy of a task is the first of these that it has, or else its first metric that is a share and not one of ERRORS.
HEADLINES = ("math_verify", "exact_match (flexible-extract)", "exact_match", "acc")
ERRORS = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"}  # less is better
_FAILED = {"model": str, "task": str, "depth": int, "reason": str}
NUMBERS = ["metric", "value", "stderr", "samples", "seconds", "tokens_per_sec"]


def results(out: str | Path) -> pd.DataFrame:
    """A row per metric of every cell at a loop count under `out`: model, task, depth, and NUMBERS."""
    table = _metrics(out, "T=*", ["model", "task", "depth"])
    return table.sort_values(["model", "task", "depth"], kind="stable", ignore_index=True)


def training(out: str | Path) -> pd.DataFrame:
    """The rows of `results` of models and checkpoints of fine-tuning runs: model, task, depth, run, updates (so far), NUMBERS."""
    columns = ["model", "task", "depth", "run", "updates"]
    table = _metrics(out, "T=*", columns).dropna(subset=["updates"]).astype({"updates": int})
    return table.sort_values(["task", "run", "depth", "updates"], kind="stable", ignore_index=True)


def exits(out: str | Path) -> pd.DataFrame:
    """The same of exits: model, task, depth (the most loops), exit (its criterion), threshold, loops (mean a token), NUMBERS."""
    columns = ["model", "task", "depth", "exit", "threshold", "loops"]
    table = _metrics(out, "*=*,T=*", columns).astype({"threshold": float, "loops": float})
    return table.sort_values(columns, kind="stable", ignore_index=True)


def _metrics(out: str | Path, places: str, columns: list[str]) -> pd.DataFrame:
    rows = []
    for path in sorted(Path(out).glob(f"*/{places}/*.json")):
        if not path.name.endswith(".failed.json"):
            cell = read_cell(path)
            for metric, (value, stderr) in cell["metrics"].items():
                rows.append({**cell, "metric": metric, "value": value, "stderr": stderr})
    return pd.DataFrame(rows, columns=[*columns, *NUMBERS]).astype({"value": float, "stderr": float, "tokens_per_sec": float})


def headlines(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `results` with the accuracy of each task (see HEADLINES). Tasks without one (perplexities) have no row."""
    shares = table[~table["metric"].str.split(" ").str[0].isin(ERRORS)]
    inside = shares["value"].between(0, 1).groupby([shares["task"], shares["metric"]]).transform("all")
    shares = shares[inside.astype(bool)]
    chosen = {}
    for task, metrics in shares.groupby("task", sort=False)["metric"]:
        chosen[task] = next((m for m in HEADLINES if m in set(metrics)), metrics.iloc[0])
    return shares[shares["metric"] == shares["task"].map(chosen)].reset_index(drop=True)


def without_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `results` of tasks that have no accuracy: perplexities, for instance."""
    return table[~table["task"].isin(headlines(table)["task"])].reset_index(drop=True)


def failures(out: str | Path) -> pd.DataFrame:
    """A row per cell under `out` that failed: model, task, depth, place (`Cell.place`), reason."""
    paths = sorted(Path(out).glob("*/*T=*/*.failed.json"))
    found = [{**read_record(path, _FAILED, "delete it"), "place": path.parent.name} for path in paths]
    return pd.DataFrame(found, columns=["model", "task", "depth", "place", "reason"])


def record(out: str | Path) -> dict[str, Any]:
    """`results`, `exits` and `failures` as JSON: as tables, and each task's headline by model and task at each of `depths`."""
    table, failed = results(out), failures(out)
    grid = headlines(table).set_index(["model", "task", "depth"])
    depths = sorted(int(depth) for depth in table["depth"].unique())
    names = {f"{model}, {task}": (model, task) for model, task, _ in grid.index}
    return {
        "depths": depths,
        "accuracy": {name: _plain(grid.loc[key, "value"].reindex(depths)) for name, key in names.items()},
        "seconds": {name: {"evaluate": float(grid.loc[key, "seconds"].sum())} for name, key in names.items()},
        "table": _records(table),
        "exits": _records(exits(out)),
        "failures": failed.to_dict("records"),
    }


def samples(out: str | Path, task: str) -> pd.DataFrame:
    """A row per problem of a task, model and depth: question, target, answer, and right, the answer's grade by the headline.

    `right` is None where answers are not graded one by one, as in perplexities.
    """
    rows = []
    for path in Path(out).glob(f"*/T=*/{glob.escape(task)}.samples.jsonl"):
        where = {"model": path.parent.parent.name, "depth": int(path.parent.name.removeprefix("T="))}
        rows += [{**where, **json.loads(line)} for line in path.read_text(encoding="utf-8").splitlines()]
    if rows:
        metric = next((m for m in (*HEADLINES, *rows[0]["grades"]) if m in rows[0]["grades"]), None)
        rows = [{**row, "right": row["grades"].get(metric)} for row in rows]
    table = pd.DataFrame(rows, columns=["model", "depth", "problem", "question", "target", "answer", "right"])
    return table.sort_values(["problem", "model", "depth"], ignore_index=True)


def drops(table: pd.DataFrame) -> pd.DataFrame:
    """By model and depth the mean over tasks, and how far it is below the model's own greatest: model, depth, value, drop.

    `table` as from `headlines`. Only depths at which a model was measured on all of its tasks count: other means would not be of
    the same tasks.
    """
    means = table.groupby(["model", "depth"], sort=False).agg(value=("value", "mean"), n=("task", "nunique")).reset_index()
    means = means[means["n"] == means.groupby("model")["n"].transform("max")].drop(columns="n").reset_index(drop=True)
    return means.assign(drop=means.groupby("model")["value"].transform("max") - means["value"])


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Its rows as JSON has them."""
    return [dict(zip(table, row, strict=True)) for row in zip(*map(_plain, (table[c] for c in table)), strict=True)]


def _plain(column: pd.Series) -> list[Any]:
    """Its values as JSON has them, None where there is none."""
    return column.astype(object).where(column.notna(), None).tolist()

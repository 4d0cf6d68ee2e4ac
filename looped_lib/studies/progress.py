"""How a study stands, read from its folders alone: from any process, on any machine that sees them."""

import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from looped_lib.core.files import is_locked, read_json
from looped_lib.core.project import DONE, STARTED
from looped_lib.samplers import TRAINED_DEPTH
from looped_lib.studies.run import failure
from looped_lib.studies.study import Parameters, Study
from looped_lib.training.metrics import last_metrics

ORDER = ["running", "failed", "done", "waiting"]
COLUMNS = ["state", "progress", "seconds", "seconds_left", "accuracy", "error"]


def states(study: Study, size: str, folder: str | Path, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """One row per run:

    state         done, failed, running, or waiting
    progress      share of the training steps done, 0 to 1 (missing where the notebook's configs are not known)
    seconds       it took, or has taken so far, over all attempts
    seconds_left  of its training, from what that has taken so far; where this is not known (before the first step, while it
                  measures, of a waiting run) from the mean of the finished runs
    accuracy      the best variant's mean accuracy over the recorded depths from 4 on: how far it holds, in one number
    error         cell and error of a failed run
    """
    return Progress(study, size, folder, seeds).states()


class Progress:
    """Reads `states` again and again: what cannot change, configs and finished runs, is read once, and of a log its last line."""

    def __init__(self, study: Study, size: str, folder: str | Path, seeds: Sequence[int] | None = None):
        self.folder, self.runs = Path(folder), study.runs(size, seeds)
        self.steps = {name: _steps(study, parameters) for name, parameters in self.runs.items()}
        self.done: dict[str, list[object]] = {}

    def states(self) -> pd.DataFrame:
        """See `states` above."""
        rows = {name: self._state(name) for name in self.runs}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).rename_axis("run")
        table = table.astype(dict.fromkeys(["progress", "seconds", "seconds_left", "accuracy"], float))
        mean = table.loc[table["state"] == "done", "seconds"].mean()
        unknown = table["state"].isin(["running", "waiting"]) & table["seconds_left"].isna()
        table.loc[unknown, "seconds_left"] = (mean - table["seconds"].fillna(0)).clip(lower=0)
        return table

    def _state(self, name: str) -> list[object]:
        folder = self.folder / name
        if (folder / DONE).exists():
            if name not in self.done:
                self.done[name] = ["done", 1.0, _of(folder / DONE, "seconds"), None, _accuracy(folder), ""]
            return self.done[name]
        self.done.pop(name, None)
        progress, left = _progress(folder, self.steps[name])
        if is_locked(folder):
            return ["running", progress, _seconds(folder), left, None, ""]
        if error := failure(folder):
            return ["failed", progress, None, None, None, error]
        return ["waiting", progress, None, None, None, ""]


def seconds_left(table: pd.DataFrame) -> float:
    """Until all runs of `states` have ended, if as many go on at a time as now; NaN before the first has ended."""
    open_runs = table[table["state"].isin(["running", "waiting"])]
    at_once = max(1, (open_runs["state"] == "running").sum())
    left = open_runs["seconds_left"]
    return max(left.max(skipna=False), left.sum(skipna=False) / at_once) if len(open_runs) else 0.0


def summary(table: pd.DataFrame) -> str:
    """How many of `states` are in which state, and how long the rest will take, as far as that is known."""
    found = table["state"].value_counts()
    counts = ", ".join(f"{found[state]} {state}" for state in ORDER if state in found)
    left = clock(seconds_left(table)) if "running" in found else ""
    return f"{counts}; {left} left" if left else counts


def clock(seconds: float) -> str:
    """A time in words; nothing where it is not known."""
    if pd.isna(seconds):
        return ""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def live_table(study: Study, size: str, folder: Path, seeds: Sequence[int] | None = None) -> Iterator[None]:
    """Show `states` while the block runs, as a live table; where there is no terminal, a line for each run once it has ended."""
    console, progress = Console(stderr=True), Progress(study, size, folder, seeds)
    if console.is_terminal:
        with Live(get_renderable=lambda: _render(progress.states(), study, size, console), refresh_per_second=1):
            yield
        return
    over, said = threading.Event(), set()

    def tell() -> None:
        for row in progress.states().itertuples():
            if row.state in ("done", "failed") and row.Index not in said:
                said.add(row.Index)
                print(f"{row.Index}: {row.state} {clock(row.seconds)}".rstrip(), file=sys.stderr, flush=True)

    def keep_telling() -> None:
        while not over.wait(1.0):
            tell()

    teller = threading.Thread(target=keep_telling, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
    tell()


def _steps(study: Study, parameters: Parameters) -> dict[str, int]:
    """Training steps by config of a run; nothing where it is not known what the notebook trains."""
    return {name: config.training.steps for name, config in study.configs(parameters).items()}


def _progress(folder: Path, steps: dict[str, int]) -> tuple[float | None, float | None]:
    """Share of the steps of all trainings of a run that is done, and the seconds left for the others."""
    if not steps:
        return None, None
    last = [line for name in steps if (line := last_metrics(folder / name / "metrics.jsonl"))]
    done, all_steps = sum(line["step"] for line in last), sum(steps.values())
    left = sum(line.get("seconds", math.nan) for line in last) * (all_steps - done) / done if 0 < done < all_steps else None
    return done / all_steps, left


def _seconds(folder: Path) -> float | None:
    """Since a run at work began, with those of its earlier attempts; None where that is not recorded."""
    before, at = _of(folder / STARTED, "before"), _of(folder / STARTED, "at")
    return None if before is None or at is None else before + time.time() - at


def _of(path: Path, field: str) -> Any:
    """A field of a record; None where the file is missing or damaged: a table of many runs does without it."""
    try:
        return read_json(path)[field]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _accuracy(folder: Path) -> float | None:
    try:
        result = read_json(folder / "result.json")
        deep = [i for i, depth in enumerate(result["depths"]) if depth >= TRAINED_DEPTH]
        return max(sum(accuracy[i] for i in deep) / len(deep) for accuracy in result["accuracy"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):  # a notebook may record what it likes
        return None


def _render(table: pd.DataFrame, study: Study, size: str, console: Console) -> Table:
    shown = Table(title=f"{study.name}, {size}: {summary(table)}", title_justify="left")
    for column in ("run", "state", "progress", "time", "left", "accuracy, %"):
        shown.add_column(column, no_wrap=column != "run")
    rows = table.sort_values("state", key=lambda s: s.map(ORDER.index), kind="stable")
    room = max(3, console.size.height - 8)
    for row in rows.head(room).itertuples():
        progress = "" if pd.isna(row.progress) else f"{row.progress:.0%}"
        accuracy = row.error if row.state == "failed" else "" if pd.isna(row.accuracy) else f"{100 * row.accuracy:.1f}"
        cells = (row.Index, row.state, progress, clock(row.seconds), clock(row.seconds_left), accuracy)
        shown.add_row(*map(Text, cells))  # as it stands: an error may hold what rich would take for markup
    if len(rows) > room:
        shown.caption = f"and {len(rows) - room} more"
    return shown

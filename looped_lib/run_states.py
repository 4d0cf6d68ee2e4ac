"""How a study stands, read from its folders alone: from any process, on any machine that sees them."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from looped_lib.files import LOCK, held, read_json
from looped_lib.metrics import read_metrics
from looped_lib.one_run import DONE, FAILED, failure
from looped_lib.study import Parameters, Study

FIRST_DEPTH = 4  # of the mean accuracy: below it nothing in the studies is trained to answer
COLUMNS = ["state", "progress", "seconds", "seconds_left", "held", "error"]


def states(study: Study, size: str, folder: str | Path, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """One row per run:

    state         done, failed, running, or waiting
    progress      share of the training steps done, 0 to 1 (missing where the notebook's configs are not known)
    seconds       it took, or has taken so far
    seconds_left  from its progress so far; of a waiting run the mean of the finished ones
    held          the best variant's mean accuracy over the recorded depths from 4 on: how far it holds, in one number
    error         cell and error of a failed run
    """
    rows = {}
    for name, parameters in study.runs(size, seeds).items():
        rows[name] = _state(study, Path(folder) / name, parameters)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).rename_axis("run")
    mean = table.loc[table["state"] == "done", "seconds"].mean()
    table.loc[table["state"] == "waiting", "seconds_left"] = mean
    numbers = ["progress", "seconds", "seconds_left", "held"]
    return table.astype(dict.fromkeys(numbers, float))


def seconds_left(table: pd.DataFrame) -> float:
    """Until all runs of `states` have ended, if as many go on at a time as now; NaN before the first has ended."""
    open_runs = table[table["state"].isin(["running", "waiting"])]
    at_once = max(1, (open_runs["state"] == "running").sum())
    return open_runs["seconds_left"].sum(skipna=False) / at_once if len(open_runs) else 0.0


def clock(seconds: float) -> str:
    """A time in words; nothing where it is not known."""
    if pd.isna(seconds):
        return ""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def live_table(study: Study, size: str, folder: Path, seeds: Sequence[int] | None = None) -> Iterator[None]:
    """Show `states` while the block runs, as a live table; where there is no terminal, a line for each run once it has ended."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Live(get_renderable=lambda: _render(states(study, size, folder, seeds), study, size, console), refresh_per_second=1):
            yield
        return
    yield
    for row in states(study, size, folder, seeds).itertuples():
        print(f"{row.Index}: {row.state} {clock(row.seconds)}", file=sys.stderr)


def _state(study: Study, folder: Path, parameters: Parameters) -> list[object]:
    if (folder / DONE).exists():
        return ["done", 1.0, read_json(folder / DONE)["seconds"], None, _held(folder), ""]
    if held(folder):
        seconds = time.time() - (folder / LOCK).stat().st_mtime
        progress = _progress(study, folder, parameters)
        left = seconds * (1 - progress) / progress if progress else None
        return ["running", progress, seconds, left, None, ""]
    if (folder / FAILED).exists():
        return ["failed", _progress(study, folder, parameters), None, None, None, failure(folder)]
    return ["waiting", _progress(study, folder, parameters), None, None, None, ""]


def _progress(study: Study, folder: Path, parameters: Parameters) -> float | None:
    """Steps done of all trainings of a run."""
    if not (configs := study.configs(parameters)):
        return None
    logs = [log for name in configs if (log := folder / name / "metrics.jsonl").exists()]
    done = sum(lines[-1]["step"] for log in logs if (lines := read_metrics(log)))  # the only line may be half written
    return done / sum(c.training.steps for c in configs.values())


def _held(folder: Path) -> float | None:
    try:
        result = read_json(folder / "result.json")
        deep = [i for i, depth in enumerate(result["depths"]) if depth >= FIRST_DEPTH]
        return max(sum(accuracy[i] for i in deep) / len(deep) for accuracy in result["accuracy"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):  # a notebook may record what it likes
        return None


def _render(table: pd.DataFrame, study: Study, size: str, console: Console) -> Table:
    counts = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
    shown = Table(title=f"{study.name}, {size}: {counts}; {clock(seconds_left(table))} left", title_justify="left")
    for column in ("run", "state", "progress", "time", "left", "held, %"):
        shown.add_column(column, no_wrap=column != "run")
    order = {"running": 0, "failed": 1, "done": 2, "waiting": 3}
    rows = table.sort_values("state", key=lambda s: s.map(order), kind="stable")
    room = max(3, console.size.height - 8)
    for row in rows.head(room).itertuples():
        progress = "" if pd.isna(row.progress) else f"{row.progress:.0%}"
        held_percent = row.error if row.state == "failed" else "" if pd.isna(row.held) else f"{100 * row.held:.1f}"
        cells = (row.Index, row.state, progress, clock(row.seconds), clock(row.seconds_left), held_percent)
        shown.add_row(*map(Text, cells))  # as it stands: an error may hold what rich would take for markup
    if len(rows) > room:
        shown.caption = f"and {len(rows) - room} more"
    return shown

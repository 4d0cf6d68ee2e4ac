"""A sweep as a notebook sees it: started in a process of its own, which outlives the kernel, and watched as a table."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import psutil
from IPython.display import display
from pandas.io.formats.style import Styler

from looped_lib.core.files import Busy, is_locked
from looped_lib.core.project import LOG
from looped_lib.studies.progress import Progress, clock, summary
from looped_lib.studies.study import Study
from looped_lib.studies.sweep import UNFINISHED

LOOK_EVERY = 2.0  # seconds
_COLOURS = {"done": "#009E73", "running": "#0072B2", "failed": "#D55E00", "waiting": "#777777"}


def run_and_watch(
    study: Study, size: str, folder: str | Path, jobs: int = 0, retry: bool = False, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """Run `study` in `folder` as `sweep.sweep` does; show its runs until the sweep ends; return `progress.states`.

    If a sweep is at work there already, that one is watched until it ends, and then this one does what is left. Interrupt the
    kernel and the sweep goes on: call this again to go on watching. RuntimeError if the sweep itself fails (a run that fails is
    a row of the table).
    """
    folder = Path(folder).resolve()
    progress = Progress(study, size, folder, seeds)
    shown = display(show(progress.states()), display_id=True)

    def watch_while(at_work: Callable[[], bool]) -> None:
        while at_work():
            time.sleep(LOOK_EVERY)
            shown.update(show(progress.states()))

    while True:
        watch_while(lambda: is_locked(folder))
        process = start(study, size, folder, jobs, retry, seeds)
        watch_while(lambda process=process: process.poll() is None)
        if process.returncode != Busy.exit_status:  # else another notebook, which watched the same sweep, was faster
            break
    if process.returncode not in (0, UNFINISHED):
        raise RuntimeError((folder / LOG).read_text(encoding="utf-8")[-2000:])
    table = progress.states()
    shown.update(show(table))
    return table


def start(
    study: Study, size: str, folder: Path, jobs: int = 0, retry: bool = False, seeds: Sequence[int] | None = None
) -> subprocess.Popen:
    """The sweep in a session of its own; what it says goes to LOG."""
    command = [
        sys.executable,
        "-m",
        "looped_lib",
        "sweep",
        study.file,
        "--size",
        size,
        "--folder",
        str(folder),
        "--jobs",
        str(jobs),
    ]
    command += ["--retry"] * retry + (["--seeds", *map(str, seeds)] if seeds else [])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG, "a") as log:  # another sweep may still write there
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    return process


def stop(folder: str | Path) -> None:
    """End the sweep that is at work in `folder`, from any kernel or process, and its runs; returns once it has ended.

    They count as not run: `run_and_watch` goes on with them.
    """
    folder = Path(folder).resolve()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[1:4] == ["-m", "looped_lib", "sweep"] and str(folder) in words:
            process.terminate()
    while is_locked(folder):
        time.sleep(0.1)


def show(table: pd.DataFrame) -> Styler:
    """`states` for people: colours, bars of progress, times in words."""
    percent = {
        "progress": lambda x: "" if pd.isna(x) else f"{x:.0%}",
        "accuracy": lambda x: "" if pd.isna(x) else f"{100 * x:.1f} %",
    }
    return (
        table.reset_index()
        .style.hide(axis="index")
        .format({**percent, "seconds": clock, "seconds_left": clock}, escape="html")
        .map(lambda state: f"color: {_COLOURS[state]}; font-weight: bold", subset="state")
        .bar(subset="progress", vmin=0, vmax=1, color="#56B4E955")
        .set_properties(subset=["run", "error"], **{"text-align": "left"})
        .set_caption(summary(table))
    )

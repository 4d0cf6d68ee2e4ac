"""A sweep as a notebook sees it: started in a process of its own, which outlives the kernel, and watched as a table."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from IPython.display import display
from pandas.io.formats.style import Styler

from looped_lib.files import held
from looped_lib.run_states import clock, seconds_left, states
from looped_lib.study import Study

LOG = "sweep.log"
LOOK_EVERY = 2.0  # seconds
_COLOURS = {"done": "#009E73", "running": "#0072B2", "failed": "#D55E00", "waiting": "#777777"}


def run_and_watch(
    study: Study, size: str, folder: str | Path, jobs: int = 0, retry: bool = False, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """Run `study` in `folder` as `sweep.sweep` does, or find it running; show its runs until it ends; return `run_states.states`.

    Interrupt the kernel and the sweep goes on: call this again to go on watching. RuntimeError if the sweep itself fails (a run
    that fails is a row of the table).
    """
    folder = Path(folder).resolve()
    process = None if held(folder) else start(study, size, folder, jobs, retry, seeds)
    shown = display(show(states(study, size, folder, seeds)), display_id=True)
    while (process is not None and process.poll() is None) or (process is None and held(folder)):
        time.sleep(LOOK_EVERY)
        shown.update(show(states(study, size, folder, seeds)))
    if process is not None and process.returncode not in (0, 1):
        raise RuntimeError((folder / LOG).read_text(encoding="utf-8")[-2000:])
    table = states(study, size, folder, seeds)
    shown.update(show(table))
    return table


def start(
    study: Study, size: str, folder: Path, jobs: int = 0, retry: bool = False, seeds: Sequence[int] | None = None
) -> subprocess.Popen:
    """The sweep in a session of its own; what it says goes to sweep.log."""
    command = [sys.executable, "-m", "looped_lib.sweep", study.file, "--size", size, "--folder", str(folder), "--jobs", str(jobs)]
    command += ["--retry"] * retry + (["--seeds", *map(str, seeds)] if seeds else [])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG, "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def show(table: pd.DataFrame) -> Styler:
    """`states` for people: colours, bars of progress, times in words."""
    counts = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
    left = clock(seconds_left(table))
    percent = {"progress": lambda x: "" if pd.isna(x) else f"{x:.0%}", "held": lambda x: "" if pd.isna(x) else f"{100 * x:.1f} %"}
    return (
        table.reset_index()
        .style.hide(axis="index")
        .format({**percent, "seconds": clock, "seconds_left": clock})
        .map(lambda state: f"color: {_COLOURS[state]}; font-weight: bold", subset="state")
        .bar(subset="progress", vmin=0, vmax=1, color="#56B4E955")
        .set_properties(subset=["run", "error"], **{"text-align": "left"})
        .set_caption(f"{counts}" + (f"; {left} left" if left and "running" in counts else ""))
    )

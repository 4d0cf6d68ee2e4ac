"""Run a study: every run in a folder of its own, several at a time, skipping what is finished.

    looped-lib sweep norms --size cpu                     (or: make sweep STUDY=norms)
    looped-lib sweep my_study.yaml --jobs 4 --retry

makes runs/<study>/<size>/<run>/. A run that fails costs itself only and is reported with its cell and error; `--retry` runs it
again. Stop the sweep whenever you like: the same command goes on. Ctrl-C ends its runs too; if it is killed they go on alone, as
they do on a cluster, and are waited for. Runs go side by side on this machine, one for each GPU, or one for each core; or on a
cluster that shares the folder, through joblib's backend for Dask (`--dask ADDRESS`). `--jobs` sets the threads of a run, and with
other threads it ends in other weights, as sums are taken in another order.
"""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import joblib
import pandas as pd
from rich.console import Console

from looped_lib.core.errors import work
from looped_lib.core.files import holding
from looped_lib.core.project import DONE, FAILED, runs_folder
from looped_lib.studies import gpus
from looped_lib.studies.finished import check_finished
from looped_lib.studies.paper import PRESETS
from looped_lib.studies.progress import live_table, states, summary
from looped_lib.studies.run_process import ending_with_this, start
from looped_lib.studies.study import Study, StudyError, load, shipped

UNFINISHED = 3  # exit status


def default_jobs() -> int:
    """Runs side by side: one for each GPU, or else for each core."""
    return len(gpus.visible()) or joblib.cpu_count()


def sweep(
    study: Study, size: str, folder: str | Path, jobs: int = 0, retry: bool = False, seeds: Sequence[int] | None = None
) -> pd.DataFrame:
    """Run what is not finished of `study` in `folder`/<run>/ and return `progress.states`. `jobs` 0: `default_jobs`.

    A run that failed before is run again with `retry` only. StudyError, before anything runs, on a run that its notebook would
    refuse and on a finished run of other parameters or configs in the same folder. Busy if another sweep is at work in `folder`.

    Under `joblib.parallel_config("dask")` the runs go to the cluster's workers, which must see `folder` and this library: one run
    for each of their threads, whatever `jobs` says, and each on its share of the worker's cores.
    """
    folder, notebook = Path(folder).resolve(), study.notebook.resolve()  # a worker may work elsewhere
    study.check_configs(size, seeds)
    runs = study.runs(size, seeds)
    for name, parameters in runs.items():
        check_finished(study, folder / name, parameters)
    with holding(folder, patience=5):
        left = [n for n in runs if not (folder / n / DONE).exists() and (retry or not (folder / n / FAILED).exists())]
        jobs = max(1, min(jobs or default_jobs(), len(left)))
        # On this machine threads are enough: each waits for a process of its own.
        parallel = joblib.Parallel(n_jobs=jobs, prefer="threads", batch_size=1, pre_dispatch="all")
        with work(), ending_with_this():
            refused = parallel(joblib.delayed(start)(notebook, folder / n, runs[n], retry, jobs) for n in left)
    table = states(study, size, folder, seeds)
    for name, why in zip(left, refused, strict=True):
        if why:  # its folder may not even be there to tell
            table.loc[name, ["state", "error"]] = "failed", why
    return table


def _cluster(address: str | None) -> AbstractContextManager:
    """The runs go to the workers of this Dask scheduler while the block runs; StudyError if it cannot be reached."""
    try:
        return joblib.parallel_config("dask", scheduler_host=address) if address else nullcontext()
    except (OSError, ValueError, ImportError) as e:
        raise StudyError(f"no Dask at {address}: {e}") from None


def main(arguments: list[str]) -> int:
    """Run a study under a live table; returns the exit status: 0 if all is done, else UNFINISHED."""
    parser = argparse.ArgumentParser(prog="looped-lib sweep", description="Run a study")
    parser.add_argument("study", help=f"a .yaml file, a .py file (a program that runs as you), or one of {', '.join(shipped())}")
    parser.add_argument("--size", default="cpu", choices=PRESETS)
    parser.add_argument("--folder", type=Path, help="of the runs; default: runs/STUDY/SIZE")
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than the study's")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side; default: one for each GPU, or else for each core")
    parser.add_argument("--retry", action="store_true", help="run again what failed before")
    parser.add_argument("--dask", metavar="ADDRESS", help="of a scheduler (tcp://host:8786) whose workers share this folder")
    args = parser.parse_args(arguments)
    if args.dask and args.jobs:
        raise StudyError("--jobs is of this machine; with --dask the workers' threads say how many runs go side by side")
    study = load(args.study)
    study.check_configs(args.size, args.seeds)  # before the table, which reads the configs
    folder = args.folder or runs_folder() / study.name / args.size
    with _cluster(args.dask), live_table(study, args.size, folder, args.seeds):
        table = sweep(study, args.size, folder, args.jobs, args.retry, args.seeds)
    console = Console()
    console.print(summary(table))
    for row in table[table["state"] == "failed"].itertuples():
        console.print(f"  {row.Index}: {row.error}", markup=False)
    return 0 if (table["state"] == "done").all() else UNFINISHED

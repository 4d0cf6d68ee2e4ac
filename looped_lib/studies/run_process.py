"""A run as its sweep sees it: a process of its own, and what became of it."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import joblib

from looped_lib.core.errors import INTERRUPTED, mendable
from looped_lib.core.files import Busy, holding, write_json
from looped_lib.core.project import DONE, FAILED, LOG
from looped_lib.core.quiet import quiet_environment
from looped_lib.studies import gpus
from looped_lib.studies.study import Parameters

_BY_INTERRUPT = (INTERRUPTED, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)  # exit statuses
_starting = threading.Lock()
_interrupted = threading.Event()
_running: set[subprocess.Popen] = set()  # of this process


def start(notebook: Path, folder: Path, parameters: Parameters, retry: bool, jobs: int) -> str:
    """One run in a new process, of `jobs` on this machine; returns when it has ended, which its folder then tells how.

    What is returned is what its folder cannot tell, or nothing. An interrupt of this process (Ctrl-C) does not reach it. A run
    that was interrupted itself has not failed: it is not done.
    """
    command = [sys.executable, "-m", "looped_lib", "_run", str(notebook), str(folder), json.dumps(parameters)]
    command += ["--retry"] * retry
    env = quiet_environment(OMP_NUM_THREADS=str(_cores(jobs)), CUDA_VISIBLE_DEVICES=",".join(gpus.visible()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOG, "a") as log, _starting:  # "a": the process of a killed sweep may still write there
            if _interrupted.is_set():
                return ""
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
            _running.add(process)
    except OSError as e:
        return f"could not be started: {mendable(e) or e}"
    ended = process.wait()
    _running.discard(process)
    try:
        if ended not in (0, *_BY_INTERRUPT) and not _interrupted.is_set():
            _record_death(folder, ended)
    except OSError as e:
        return f"its process ended, and that could not be recorded: {mendable(e) or e}"
    return ""


@contextmanager
def ending_with_this() -> Iterator[None]:
    """If the block is interrupted, by Ctrl-C or a polite kill (SIGTERM), all runs that it has started end with it, each after its
    step and with a checkpoint; interrupted once more, at once.

    They count as not run, not as failed.
    """
    _interrupted.clear()
    before = signal.signal(signal.SIGTERM, _interrupt) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    except KeyboardInterrupt:
        with _starting:
            _interrupted.set()
        ending = list(_running)
        for process in ending:
            process.terminate()
        try:
            for process in ending:
                process.wait()
        except KeyboardInterrupt:
            for process in ending:
                process.terminate()
            raise
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _record_death(folder: Path, ended: int) -> None:
    how = f"signal {-ended} ({signal.Signals(-ended).name})" if ended < 0 else f"status {ended} (see {LOG})"
    with suppress(Busy), holding(folder, patience=2):  # Busy: another process has taken the run over
        if not (folder / DONE).exists():
            write_json(folder / FAILED, {"cell": None, "error": f"its process ended by {how}"})


def _cores(jobs: int) -> int:
    """Of this machine, for each of `jobs` runs side by side: as many as it has threads, where this is a worker of Dask's."""
    if "distributed" in sys.modules:
        with suppress(ValueError):  # no worker
            jobs = sys.modules["distributed"].get_worker().state.nthreads
    return max(1, joblib.cpu_count() // jobs)

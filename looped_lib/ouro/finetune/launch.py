"""Fine-tuning jobs as a notebook sees them: started in processes of their own, watched, found again, stopped.

A job is known by its run's folder. It is a torchrun of `looped_lib.ouro.finetune` in a session of its own, so that it outlives
the kernel that started it: in a new kernel `start` or `attach` with the same folder finds it running.

    job.json   process, time of its start, where its part of the log begins      train.log   all that its processes print
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from looped_lib.config import to_dict
from looped_lib.core.files import holding, read_json, read_record, write_json
from looped_lib.core.quiet import quiet_environment
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.ouro.finetune.folder import CONFIG, DATA, METRICS, RESULT, STOP, check_config
from looped_lib.training.metrics import read_metrics

LOG, JOB = "train.log", "job.json"
LOOK_EVERY = 1.0  # seconds
CLOCK = 5.0  # seconds that the system's idea of when a process started may wander, as its clock is set


@dataclass(frozen=True)
class Job:
    """A fine-tuning run and its processes, wherever they are in their life."""

    run_dir: Path

    @property
    def state(self) -> str:
        """finished, running, stopped (by `stop` or a signal: start goes on) or failed (start goes on from a checkpoint)."""
        alive = self._process() is not None  # asked first: a job that ends in between has its result by then
        if (self.run_dir / RESULT).exists():
            return "finished"
        if alive:
            return "running"
        return "stopped" if (self.run_dir / STOP).exists() else "failed"

    def metrics(self) -> pd.DataFrame:
        """What was logged so far, a row per logged update."""
        path = self.run_dir / METRICS
        return pd.DataFrame(read_metrics(path) if path.exists() else [])

    def updates(self) -> int | None:
        """Updates of the whole run; None before its data is read."""
        path = self.run_dir / DATA
        return read_json(path).get("updates") if path.exists() else None

    def error(self) -> str:
        """Why the job failed: its `error:` line, or else what killed a process, and the end of its last start's log."""
        if not (self.run_dir / JOB).exists():
            return ""
        printed = (self.run_dir / LOG).read_bytes()[self._record()["log_starts"] :]
        lines = printed.decode("utf-8", errors="replace").splitlines()
        said = [line for line in lines if line.startswith("error: ")]
        killed = [line.split(" : ")[-1] for line in lines if "received by PID" in line and "SIGTERM" not in line]
        return said[-1] if said else "\n".join([*killed, *lines[-25:]])

    def stop(self, timeout: float = 600.0) -> None:
        """End the job after its next update, with a checkpoint; returns when it has ended. TimeoutError if it does not."""
        end = time.monotonic() + timeout
        while (process := self._process()) is not None:
            (self.run_dir / STOP).touch()  # again and again: a job that is only starting clears it away
            if time.monotonic() > end:
                raise TimeoutError(f"process {process.pid} of {self.run_dir} did not stop in {timeout:.0f} s: look into {LOG}")
            time.sleep(0.2)

    def wait(self, look: Callable[["Job"], Any] | None = None) -> "Job":
        """Until the job has ended, calling `look` about every second and once after. RuntimeError with its error if it failed."""
        while self.state == "running":
            if look is not None:
                look(self)
            time.sleep(LOOK_EVERY)
        if look is not None:
            look(self)
        if self.state == "failed":
            raise RuntimeError(f"{self.run_dir} failed; started again it goes on from its last checkpoint.\n{self.error()}")
        return self

    def _process(self) -> psutil.Process | None:
        """The job's torchrun, if it lives. A number that another process has by now is not it."""
        if not (self.run_dir / JOB).exists():
            return None
        job = self._record()
        try:
            process = psutil.Process(job["pid"])
            alive = abs(process.create_time() - job["created"]) < CLOCK and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, OverflowError, ValueError):  # the latter of numbers that no process has
            return None
        return process if alive else None

    def _record(self) -> dict[str, Any]:
        kinds = {"pid": int, "created": int | float, "log_starts": int}
        return read_record(self.run_dir / JOB, kinds, "delete it and start the job again, which goes on")


def attach(run_dir: str | Path) -> Job:
    """The job of a run's folder. FileNotFoundError if none was started there."""
    job = Job(Path(run_dir).resolve())
    if not (job.run_dir / JOB).exists():
        raise FileNotFoundError(f"no job was started in {job.run_dir}: it has no {JOB}")
    return job


def start(config: FinetuneConfig, run_dir: str | Path, processes: int) -> Job:
    """Start `config` in `run_dir` on `processes` processes (one per GPU), go on with it, or find it running or finished.

    Before anything starts: ConfigError if the folder is of a run with other settings, Busy if a job that was started by other
    means is at work in it.
    """
    job = Job(Path(run_dir).resolve())
    check_config(config, job.run_dir)
    if job.state in ("finished", "running"):
        return job
    with holding(job.run_dir):
        write_json(job.run_dir / CONFIG, to_dict(config))
        (job.run_dir / STOP).unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "looped_lib.ouro.finetune", str(job.run_dir / CONFIG), str(job.run_dir)]
    threads = max(1, (os.cpu_count() or 1) // processes)
    # Torchrun gives its processes 30 seconds to end, which is little for an update and a checkpoint of a large model.
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",
        **quiet_environment(PYTHONUNBUFFERED="1"),
    }
    with open(job.run_dir / LOG, "ab") as log:
        log_starts = log.tell()
        torchrun = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    created = psutil.Process(torchrun.pid).create_time()
    write_json(job.run_dir / JOB, {"pid": torchrun.pid, "created": created, "log_starts": log_starts})
    return job

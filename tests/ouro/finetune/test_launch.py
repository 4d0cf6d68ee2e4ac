"""Jobs: they outlive who started them, are found again, stop, fail with their error and go on."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ouro_jobs import assert_equal, config, inputs, log, metrics, run, start, weights

from looped_lib.config import PenaltyConfig, to_dict
from looped_lib.core import files
from looped_lib.core.checks import ConfigError
from looped_lib.core.files import Busy, holding, read_json, write_json
from looped_lib.ouro.finetune import job, launch
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM
from looped_lib.samplers import UniformLoops

STEPS, EVERY = 60, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    with inputs(tmp_path_factory.mktemp("launch")) as folder:
        yield folder


@pytest.fixture(autouse=True)
def cache_of_jobs(folder, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))


def job_config(folder: Path) -> FinetuneConfig:
    penalty = PenaltyConfig(weight=0.2, share=0.5, onset=2)
    loops = UniformLoops(low=1, high=3)
    return config(folder, steps=STEPS, micro_batch=2, loops=loops, penalty=penalty, checkpoint_every=EVERY, checkpoints_kept=2)


def until(met: Callable[[], bool], job: launch.Job) -> None:
    deadline = time.monotonic() + 120
    while not met():
        assert job.state == "running" and time.monotonic() < deadline, job.error()
        time.sleep(0.01)


def logged(job: launch.Job, step: int) -> Callable[[], bool]:
    return lambda: len(table := job.metrics()) > 0 and table.step.iloc[-1] >= step


STARTER = """
import json, sys
from looped_lib.config import from_dict
from looped_lib.ouro.finetune import job, launch
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM
launch.start(from_dict(FinetuneConfig, json.load(open(sys.argv[1]))), sys.argv[2], processes=2)
"""


def test_the_life_of_a_job(folder):
    """Started by a process that ends, killed whole, started again, one of its processes killed, started, stopped, started, done:
    bit for bit what it had been without all that."""
    c, run_dir = job_config(folder), folder / "job"
    (folder / "job.json").write_text(json.dumps(to_dict(c)))
    run([(c, folder / "whole")], 2)
    subprocess.run([sys.executable, "-c", STARTER, folder / "job.json", run_dir], check=True)
    job = launch.attach(run_dir)
    until(logged(job, EVERY + 1), job)
    assert launch.start(c, run_dir, processes=2) == job and job.state == "running"
    with pytest.raises(ConfigError, match="other settings .seed.: choose another folder"):
        launch.start(replace(c, seed=9), run_dir, processes=2)
    job_file = read_json(run_dir / "job.json")
    write_json(run_dir / "job.json", {**job_file, "created": job_file["created"] - 100})
    assert job.state == "failed"  # another process has its number: not ours
    write_json(run_dir / "job.json", job_file)
    both = workers(job_file["pid"])
    os.killpg(job_file["pid"], signal.SIGKILL)  # at whatever moment this is
    psutil.wait_procs(both, timeout=60)
    assert job.state == "failed" and not any(process.is_running() for process in both)

    got_to = job.metrics().step.max()
    job = launch.start(c, run_dir, processes=2)
    until(logged(job, got_to + 1), job)
    torchrun = read_json(run_dir / "job.json")["pid"]
    workers(torchrun)[1].kill()
    with pytest.raises(RuntimeError, match=r"(?s)failed; started again .*SIGKILL"):
        job.wait()
    assert not psutil.pid_exists(torchrun) or psutil.Process(torchrun).status() == psutil.STATUS_ZOMBIE

    job = launch.start(c, run_dir, processes=2)
    job.stop(timeout=120)  # at once, while it still starts
    assert job.state == "stopped" and not (run_dir / "result.json").exists()
    step = job.metrics().step.iloc[-1]
    assert (run_dir / "checkpoints" / f"step_{step:08d}").exists()

    seen = []
    job = launch.start(c, run_dir, processes=2).wait(lambda job: seen.append(job.state))
    assert job.state == seen[-1] == "finished" and set(seen) == {"running", "finished"}
    assert launch.start(c, run_dir, processes=2).state == "finished" and read_json(run_dir / "job.json")["pid"] != torchrun
    assert job.metrics().step.tolist() == list(range(1, STEPS + 1))
    assert_equal(weights(run_dir, STEPS), weights(folder / "whole", STEPS))
    for line, expected in zip(metrics(run_dir), metrics(folder / "whole"), strict=True):
        assert (line["loss"], line["penalty"], line["n_loops"]) == (expected["loss"], expected["penalty"], expected["n_loops"])


def workers(torchrun: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(torchrun).children() if "looped_lib.ouro.finetune" in p.cmdline()]


def test_what_only_the_first_process_sees_is_one_line_of_all(folder):
    """The other one, which waited for the data, has nothing to say."""
    c, run_dir = config(folder), folder / "column"
    statuses = start([(replace(c, data=replace(c.data, prompt_column="question")), run_dir)], 2).statuses()
    printed = log(run_dir, 0) + log(run_dir, 1)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "ChatDataConfig.prompt_column must be a column of" in errors[0]
    assert "Traceback" not in printed and statuses == [2, 2]


def test_two_jobs_in_one_folder(folder, monkeypatch):
    """The second one, by hand or by `start`, says who is at work, whichever process of it comes first; nothing is touched."""
    c, run_dir = config(folder), folder / "twice"
    monkeypatch.setattr(inspect.unwrap(files.holding), "__defaults__", (0.3,))
    with holding(run_dir):
        with pytest.raises(Busy, match=f"at work in {run_dir} .process {os.getpid()} on "):
            launch.start(c, run_dir, processes=1)
        assert start([(c, run_dir)], 2, impatient).statuses() == [Busy.exit_status] * 2
        assert [path.name for path in run_dir.iterdir()] == [".lock"]
    printed = log(run_dir, 0) + log(run_dir, 1)
    assert printed.count("error: ") == 1 and f"at work in {run_dir} (process {os.getpid()} on " in printed
    job.finetune(replace(c, updates=replace(c.updates, steps=1)), run_dir)  # free again


def impatient(rank: int) -> None:
    """A job that does not wait half a minute for the folder."""
    inspect.unwrap(files.holding).__defaults__ = (0.3,)


def damaged(rank: int, who: int) -> None:
    """A mistake in the code of one process only."""
    if rank == who:
        OuroForCausalLM.forward = lambda self, **kwargs: {}["loss"]


@pytest.mark.parametrize("who", [0, 1])
def test_a_mistake_in_one_process_ends_all_with_its_traceback(folder, who):
    run_dir = folder / f"damaged_{who}"
    assert start([(config(folder), run_dir)], 2, damaged, who).statuses() == [1, 1]
    assert "KeyError: 'loss'" in log(run_dir, who) and "Traceback" not in log(run_dir, 1 - who)


def test_folders_without_a_job(tmp_path):
    with pytest.raises(FileNotFoundError, match="no job was started in .*no job.json"):
        launch.attach(tmp_path)
    job = launch.Job(tmp_path)
    assert job.state == "failed" and job.error() == "" and job.metrics().empty
    job.stop()  # nothing runs


def test_an_error_is_that_of_the_last_start(tmp_path):
    first, second = "error: no such column\n", "Traceback\nValueError: a bug\n"
    third = "  traceback : Signal 9 (SIGKILL) received by PID 7\n" + "a line\n" * 25
    (tmp_path / launch.LOG).write_text(first + second + third)
    for starts, said in (
        (0, "error: no such column"),
        (len(first) + len(second), "Signal 9 (SIGKILL) received by PID 7" + "\na line" * 25),
    ):
        write_json(tmp_path / launch.JOB, {"pid": 0, "created": 0.0, "log_starts": starts})
        assert launch.Job(tmp_path).error() == said

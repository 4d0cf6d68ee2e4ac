"""Sweeps: all runs of a study, side by side; a failure costs one run, nothing is run twice or lost, whatever is killed."""

import io
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import joblib
import nbformat
import psutil
import pytest
from rich.console import Console

from looped_lib.config import to_dict
from looped_lib.core.errors import run as run_command
from looped_lib.core.files import Busy, holding, is_locked, read_json, write_json
from looped_lib.core.project import LOG, find_root
from looped_lib.studies import gpus, run_process
from looped_lib.studies import sweep as module
from looped_lib.studies.batch import execute
from looped_lib.studies.paper import base
from looped_lib.studies.progress import _render, live_table, seconds_left, states, summary
from looped_lib.studies.run import run
from looped_lib.studies.study import Study, load
from looped_lib.studies.sweep import UNFINISHED, main, sweep
from looped_lib.widgets.sweeps import run_and_watch

# Run 1 raises and run 2's kernel dies until a file `repaired` lies beside the notebook, which is the working directory.
# `log` gets a line when a run begins and one when it ends; `go` releases runs that wait.
WORK = """
import json, os, pathlib, time
from looped_lib.core.interrupts import deferred
me = f"{a},{seed}"
with open("log", "a") as file: file.write(f"begin {me} {os.environ['OMP_NUM_THREADS']}\\n")
broken = not pathlib.Path("repaired").exists()
if a == 1 and broken: raise RuntimeError("the reason")
if a == 2 and broken: os._exit(1)
with deferred() as interrupt:
    while wait and not pathlib.Path("go").exists() and not interrupt.signal: time.sleep(0.05)
    if interrupt.signal:
        with open("log", "a") as file: file.write(f"saved {me}\\n")
pathlib.Path(out, "result.json").write_text(json.dumps({"depths": [1, 4, 8], "accuracy": {"x": [0.1, 0.5, 1.0]}}))
with open("log", "a") as file: file.write(f"end {me}\\n")
"""
STUDY = """\
about: a toy
notebook: work.ipynb
set: {wait: WAIT}
grid: {a: [0, 1, 2]}
seeds: [5]
"""
SWEEP = """
import sys
from looped_lib.studies.study import load
from looped_lib.studies.sweep import sweep
sweep(load(sys.argv[1]), "cpu", sys.argv[2], int(sys.argv[3]))
"""


def run_name(a):
    return f"a={a},seed=5"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project of its own, with a toy notebook and two studies of it."""
    monkeypatch.setattr(module, "runs_folder", lambda: tmp_path / "runs")
    parameters = 'preset: str = "cpu"\na: int = 0\nwait: bool = False\nseed: int = 0\nout: str = ""'
    cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(WORK)], metadata=kernel)
    nbformat.write(notebook, tmp_path / "work.ipynb")
    (tmp_path / "mine.yaml").write_text(STUDY.replace("WAIT", "false"))
    (tmp_path / "slow.yaml").write_text(STUDY.replace("WAIT", "true").replace("[0, 1, 2]", "[3, 4, 5, 6]"))
    yield tmp_path
    (tmp_path / "go").touch()  # whatever a test left waiting


def log(folder):
    """Begin and end of runs, without the number of threads."""
    lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return [" ".join(line.split()[:2]) for line in lines]


def until(condition, seconds=300):  # a machine may be busy
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_failures_cost_one_run_and_are_repeated_on_request(folder, capsys):
    command = [str(folder / "mine.yaml"), "--jobs", "2"]
    runs = folder / "runs" / "mine" / "cpu"
    assert run_command(main, command) == UNFINISHED
    said = capsys.readouterr()
    assert "2 failed, 1 done" in said.out and f"{run_name(1)}: cell 3: RuntimeError: the reason" in said.out
    assert f"{run_name(2)}: cell 3: DeadKernelError" in said.out
    assert f"{run_name(0)}: done" in said.err
    assert "the reason" in (runs / run_name(1) / "notebook.ipynb").read_text()
    parameters = {"preset": "cpu", "wait": False, "a": 0, "seed": 5}
    assert read_json(runs / run_name(0) / "sweep.json")["parameters"] == parameters
    table = states(load(command[0]), "cpu", runs)
    assert table["accuracy"].to_list()[0] == pytest.approx(0.75) and seconds_left(table) == 0
    assert len({line for line in (folder / "log").read_text().splitlines() if "begin" in line}) == 3

    assert run_command(main, command) == UNFINISHED  # what failed is not tried again by itself
    assert len(log(folder)) == 4
    (folder / "repaired").touch()
    assert run_command(main, [*command, "--retry"]) == 0
    assert "3 done" in capsys.readouterr().out
    begun = sorted(line for line in log(folder) if "begin" in line)
    assert begun == ["begin 0,5", "begin 1,5", "begin 1,5", "begin 2,5", "begin 2,5"]

    (folder / "mine.yaml").write_text(STUDY.replace("WAIT", "true"))
    assert run_command(main, command) == 2
    assert "was run with wait False, now True: delete it, or name the study anew" in capsys.readouterr().err


def test_mistakes_are_refused_before_anything_runs(folder, capsys):
    (folder / "typo.yaml").write_text(STUDY.replace("WAIT", "true").replace("{a:", "{aa:"))
    assert run_command(main, [str(folder / "typo.yaml")]) == 2
    assert "typo.yaml, line 4: grid.aa: work.ipynb has no parameter aa; it has preset, a, wait" in capsys.readouterr().err
    assert run_command(main, ["absent"]) == 2
    assert "no study absent" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(folder / "mine.yaml"), "--size", "tiny"])
    assert not (folder / "runs").exists() and not log(folder)


def test_values_that_the_configs_refuse_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "runs_folder", lambda: tmp_path / "runs")
    study = tmp_path / "s.yaml"
    study.write_text("about: a\nnotebook: 01_norm_placement\ngrid: {norm_placement: [prenorm]}\n")
    assert run_command(main, [str(study)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "run norm_placement=prenorm,seed=0: norm_placement must be one of pre_norm" in said
    study.write_text("about: a\nnotebook: 01_norm_placement\ngrid: {norm_placement: [pre_norm]}\n")
    monkeypatch.setattr(joblib, "parallel_config", lambda *a, **k: (_ for _ in ()).throw(OSError("Timed out")))
    assert run_command(main, [str(study), "--dask", "tcp://nowhere:1"]) == 2
    assert capsys.readouterr().err == "error: no Dask at tcp://nowhere:1: Timed out\n"
    assert run_command(main, [str(study), "--dask", "tcp://nowhere:1", "--jobs", "2"]) == 2
    assert "error: --jobs is of this machine; with --dask" in capsys.readouterr().err
    assert run_command(main, [str(study), "--seeds", "-1"]) == 2
    assert capsys.readouterr().err == "error: seeds must be a list of different whole numbers, 0 or more, got [-1]\n"
    assert not (tmp_path / "runs").exists()


def test_the_live_table_shows_errors_as_they_are(folder):
    study, run = load(folder / "mine.yaml"), folder / "runs" / run_name(1)
    write_json(run / "failed.json", {"cell": 3, "error": "KeyError: [/b] [red]x", "parameters": {}})
    console = Console(width=200, file=io.StringIO())
    console.print(_render(states(study, "cpu", folder / "runs"), study, "cpu", console))
    assert "cell 3: KeyError: [/b] [red]x" in console.file.getvalue()


def test_a_killed_sweep_goes_on_and_a_second_one_runs_nothing_twice(folder):
    study, runs = load(folder / "slow.yaml"), folder / "runs" / "slow" / "cpu"
    command = [sys.executable, "-c", SWEEP, str(folder / "slow.yaml"), str(runs), "2"]
    first = subprocess.Popen(command, cwd=find_root())
    until(lambda: len(log(folder)) == 2)
    table = states(study, "cpu", runs)
    assert table["state"].to_list() == ["running", "running", "waiting", "waiting"]
    first.kill()  # its two runs go on without it
    second = subprocess.Popen(command, cwd=find_root())
    time.sleep(3)
    assert len(log(folder)) == 2
    (folder / "go").touch()
    assert second.wait(120) == 0
    assert states(study, "cpu", runs)["state"].to_list() == ["done"] * 4
    assert sorted(log(folder)) == sorted(f"{what} {a},5" for a in (3, 4, 5, 6) for what in ("begin", "end"))


def test_a_killed_run_is_a_failure_that_says_so(folder):
    study, runs = load(folder / "slow.yaml"), folder / "runs" / "slow" / "cpu"
    process = subprocess.Popen([sys.executable, "-c", SWEEP, str(folder / "slow.yaml"), str(runs), "4"], cwd=find_root())
    until(lambda: len(log(folder)) == 4)
    (victim,) = [p for p in psutil.Process(process.pid).children() if run_name(4) in " ".join(p.cmdline())]
    victim.kill()
    until(lambda: (runs / run_name(4) / "failed.json").exists())
    (folder / "go").touch()
    assert process.wait(120) == 0
    table = states(study, "cpu", runs)
    assert table["state"].to_list() == ["done", "failed", "done", "done"]
    assert table["error"].iloc[1] == "its process ended by signal 9 (SIGKILL)"
    assert sweep(study, "cpu", runs, retry=True)["state"].to_list() == ["done"] * 4


@pytest.mark.parametrize("moment", ["at once", "at work"])
def test_an_interrupt_stops_all_runs_and_fails_none(folder, moment):
    runs = folder / "runs" / "slow" / "cpu"
    command = [sys.executable, "-m", "looped_lib", "sweep", str(folder / "slow.yaml"), "--folder", str(runs), "--jobs", "2"]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a shell has its background jobs ignore it
    process = subprocess.Popen(command, cwd=find_root(), start_new_session=True, stderr=subprocess.PIPE, text=True, **heard)
    until(lambda: len(list(runs.glob("*/sweep.log"))) == 2 if moment == "at once" else len(log(folder)) == 2)
    if moment == "at once":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.terminate()
    assert process.wait(60) == 130 and process.stderr.read().endswith("interrupted: the same command goes on from what is done\n")
    assert states(load(folder / "slow.yaml"), "cpu", runs)["state"].to_list() == ["waiting"] * 4
    assert not list(runs.glob("*/*failed.json*")) and len(list(runs.glob("*/sweep.log"))) == 2
    if moment == "at work":  # the cells were told, and ended in their own way
        assert {line.split()[0] for line in log(folder)} == {"begin", "saved"} and len(log(folder)) == 4


def test_a_run_that_is_interrupted_saves_what_it_has_and_has_not_failed(folder):
    (folder / "one.yaml").write_text(STUDY.replace("WAIT", "true").replace("[0, 1, 2]", "[3]"))
    study, runs = load(folder / "one.yaml"), folder / "runs"
    with ThreadPoolExecutor(1) as pool:
        swept = pool.submit(sweep, study, "cpu", runs)
        until(lambda: log(folder) or swept.done())
        (one,) = [p for p in psutil.Process().children() if "_run" in p.cmdline()]
        one.terminate()
        assert swept.result(60)["state"].to_list() == ["waiting"]
    assert log(folder) == ["begin 3,5", "saved 3,5"] and not list(runs.glob("*/failed.json"))
    assert "Traceback" not in (runs / run_name(3) / "sweep.log").read_text()


def test_a_run_that_fails_is_not_repeated_by_who_waited_for_it(folder):
    run = folder / "runs" / run_name(3)
    command = [sys.executable, "-m", "looped_lib", "_run", str(folder / "work.ipynb"), str(run), '{"a": 3, "seed": 5}']
    with holding(run):
        waiting = subprocess.Popen(command, cwd=find_root())
        time.sleep(3)
        write_json(run / "failed.json", {"cell": 3, "error": "the reason"})
    assert waiting.wait(60) == 0 and not log(folder) and (run / "failed.json").exists()


def test_a_run_that_cannot_be_started_fails_alone(folder, monkeypatch):
    real = subprocess.Popen

    def popen(command, **options):
        if run_name(1) in str(command):
            raise OSError(28, "No space left on device")
        return real(command, **options)

    monkeypatch.setattr(run_process.subprocess, "Popen", popen)
    (folder / "repaired").touch()
    table = sweep(load(folder / "mine.yaml"), "cpu", folder / "runs", jobs=3)
    assert table["state"].to_list() == ["done", "failed", "done"]
    assert table["error"].iloc[1] == "could not be started: [Errno 28] No space left on device"


def test_a_notebook_that_finds_a_sweep_at_work_does_what_that_leaves(folder, monkeypatch):
    monkeypatch.setattr("looped_lib.widgets.sweeps.display", lambda *a, **k: SimpleNamespace(update=lambda shown: None))
    study, runs = load(folder / "mine.yaml"), folder / "runs"
    hold = "import sys, time\nfrom looped_lib.core.files import holding\n"
    hold += "with holding(sys.argv[1]): print(1, flush=True); time.sleep(3)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(runs)], cwd=find_root(), stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "1\n"  # a sweep that ends without a run of its own
    table = run_and_watch(study, "cpu", runs)
    assert other.wait(0) == 0 and table["state"].to_list() == ["done", "failed", "failed"]
    (folder / "mine.yaml").write_text("about: 3")
    with pytest.raises(RuntimeError, match="error: .*mine.yaml, line 1"):
        run_and_watch(study, "cpu", runs)


def test_two_notebooks_that_start_the_same_sweep_share_it(folder, monkeypatch):
    monkeypatch.setattr("looped_lib.widgets.sweeps.display", lambda *a, **k: SimpleNamespace(update=lambda shown: None))
    study, runs = load(folder / "slow.yaml"), folder / "runs"
    with ThreadPoolExecutor() as notebooks:
        both = [notebooks.submit(run_and_watch, study, "cpu", runs) for _ in range(2)]
        until(lambda: (runs / LOG).exists() and "another process is at work" in (runs / LOG).read_text())
        (folder / "go").touch()
        tables = [notebook.result() for notebook in both]
    assert [table["state"].to_list() for table in tables] == 2 * [["done"] * 4]
    assert sum(line.startswith("begin") for line in log(folder)) == 4


def test_without_a_terminal_a_run_is_told_when_it_ends(folder, capsys):
    study, runs, said = load(folder / "mine.yaml"), folder / "runs", []
    with live_table(study, "cpu", runs):
        write_json(runs / run_name(0) / "sweep.json", {"seconds": 3.0})
        until(lambda: said.append(capsys.readouterr().err) or "".join(said) == f"{run_name(0)}: done 3 s\n", 10)
        write_json(runs / run_name(1) / "failed.json", {"cell": 3, "error": "the reason"})
    assert capsys.readouterr().err == f"{run_name(1)}: failed\n"


def test_a_cluster_loses_a_worker_and_nothing_else(folder):
    distributed = pytest.importorskip("distributed")
    study, runs = load(folder / "slow.yaml"), folder / "runs" / "slow" / "cpu"
    options = {"n_workers": 3, "threads_per_worker": 1, "processes": True, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        killed = []

        def kill_one():  # the worker and all that it has started: a machine that is gone
            try:
                until(lambda: len(log(folder)) == 3)
                worker = next(p for p in client.run(os.getpid).values() if psutil.Process(p).children(recursive=True))
                everything = [psutil.Process(worker), *psutil.Process(worker).children(recursive=True)]
                for process in everything:
                    process.send_signal(signal.SIGKILL)
                killed.append(worker)
            finally:  # or the sweep would wait for ever
                (folder / "go").touch()

        with joblib.parallel_config("dask", client=client):
            thread = threading.Thread(target=kill_one)
            thread.start()
            table = sweep(study, "cpu", runs)
            thread.join()
    assert killed and table["state"].to_list() == ["done"] * 4
    lines = log(folder)
    ended = sorted(line for line in lines if line.startswith("end"))
    assert ended == [f"end {a},5" for a in (3, 4, 5, 6)]
    begun = [line for line in lines if line.startswith("begin")]
    assert len(begun) == 5 and len(set(begun)) == 4  # the killed run began again, no other


def test_the_cores_are_shared_by_the_runs_that_there_are_where_they_run(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "start", lambda *arguments: seen.append((arguments[0], arguments[-1])) or "")
    monkeypatch.chdir(folder)
    sweep(replace(load("mine.yaml"), notebook=Path("work.ipynb")), "cpu", "runs", jobs=8)
    assert seen == [(folder.resolve() / "work.ipynb", 3)] * 3
    monkeypatch.setattr(joblib, "cpu_count", lambda: 12)
    assert run_process._cores(3) == 4 and run_process._cores(24) == 1
    worker = SimpleNamespace(state=SimpleNamespace(nthreads=2))
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(get_worker=lambda: worker))
    assert run_process._cores(3) == 6


def test_a_run_sees_one_gpu_that_no_other_sees(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-1/2,-1,5")
    assert gpus.visible() == ["3", "MIG-1/2"]  # as CUDA reads it
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1/2")
    with gpus.one_gpu() as mine:
        assert mine == "MIG-1/2" and [str(os.getuid()) in path.name for path in tmp_path.iterdir()] == [True]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    assert gpus.visible() == ["3", "7"] and module.default_jobs() == 2
    with gpus.one_gpu() as mine:
        assert mine == os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        show = "import os\nfrom looped_lib.studies.gpus import one_gpu\n"
        show += "with one_gpu() as g: print(g, os.environ['CUDA_VISIBLE_DEVICES'])"
        env = os.environ | {"CUDA_VISIBLE_DEVICES": "3,7", "TMPDIR": str(tmp_path)}
        assert subprocess.check_output([sys.executable, "-c", show], env=env, text=True).split() == ["7", "7"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with gpus.one_gpu() as none:
        assert none is None and module.default_jobs() == joblib.cpu_count()


@pytest.fixture
def known(tmp_path):
    """A study of a notebook whose configs are known: three runs of six steps each."""
    notebook = find_root() / "notebooks" / "01_norm_placement.ipynb"
    return Study(name="s", about="", notebook=notebook, set={"norm_placement": "pre_norm"}, seeds=(0, 1, 2))


def write_metrics(folder, seed, text):
    """Of the training in run `seed` of the study `known`."""
    run = folder / f"seed={seed}" / f"pre_norm-LayerNorm-seed{seed}"
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text(text)
    write_json(run / "config.json", {})


def test_progress_and_time_left_of_known_notebooks(tmp_path, known):
    assert states(known, "smoke", tmp_path)["progress"].to_list() == [0, 0, 0]
    write_metrics(tmp_path, 0, '{"step": 2, "seconds": 8}\n{"step": 3, "seconds": 12.0}\n')
    write_metrics(tmp_path, 2, '{"ste')
    table = states(known, "smoke", tmp_path)
    assert math.isnan(seconds_left(table)) and "left" not in summary(table)
    write_json(tmp_path / "seed=1" / "sweep.json", {"notebook": "", "parameters": {}, "seconds": 40.0})
    table = states(known, "smoke", tmp_path)
    assert table["progress"].to_list() == [0.5, 1, 0] and table["seconds_left"].to_list()[2] == 40
    assert seconds_left(table) == 80 and not is_locked(tmp_path / "seed=0")
    with holding(tmp_path / "seed=0"), holding(tmp_path / "seed=2"):
        write_json(tmp_path / "seed=0" / "started.json", {"at": time.time() - 5, "before": 10.0})
        write_json(tmp_path / "seed=2" / "started.json", {"at": time.time() - 5, "before": 0.0})
        table = states(known, "smoke", tmp_path)
        assert table["seconds"].to_list() == pytest.approx([15, 40, 5], abs=1)
        assert table["seconds_left"].to_list()[::2] == pytest.approx([12, 35], abs=1)  # by its steps; by the finished run
        assert seconds_left(table) == pytest.approx(35, abs=1)  # the longer of two that go side by side
        write_metrics(tmp_path, 0, '{"step": 6, "seconds": 24.0}\n')  # and now it measures
        table = states(known, "smoke", tmp_path)
        assert table["progress"].iloc[0] == 1 and table["seconds_left"].iloc[0] == pytest.approx(25, abs=1)


def test_the_time_of_a_run_is_that_of_all_its_attempts(folder, known):
    write_metrics(folder, 0, '{"step": 3, "seconds": 1000.0}\n{"st')
    write_json(folder / "seed=0" / "pre_norm-LayerNorm-seed0" / "result.json", {"seconds": {"evaluate": 500.0}})
    run(folder / "work.ipynb", folder / "seed=0", {"a": 3, "seed": 0})
    assert 1500 < read_json(folder / "seed=0" / "sweep.json")["seconds"] < 1600


def test_who_waits_for_a_folder_leaves_its_lock_as_it_is(tmp_path):
    with holding(tmp_path):
        (tmp_path / ".lock").write_text("x")
        with pytest.raises(Busy), holding(tmp_path, patience=0):
            pass
        assert (tmp_path / ".lock").read_text() == "x"


def test_notebook_07_compares_what_is_finished_beside_what_failed(folder):
    study, runs = load(folder / "mine.yaml"), folder / "runs"
    parameters = study.runs("cpu")
    write_json(
        runs / run_name(0) / "sweep.json", {"notebook": "work.ipynb", "parameters": parameters[run_name(0)], "seconds": 3.0}
    )
    one, config = runs / run_name(0) / "x-seed5", to_dict(base("smoke", 5))
    curve = {"depths": [1, 4], **dict.fromkeys(("accuracy", "state_norm", "residual"), [0.5, 0.5])}
    write_json(one / "config.json", config)
    write_json(one / "result.json", {**curve, "seconds": {"train": 1.0}, "config": config})
    (one / "metrics.jsonl").write_text('{"step": 1, "ce": 0.5}\n')
    for a in (1, 2):
        write_json(runs / run_name(a) / "failed.json", {"cell": 3, "error": "the reason"})
    notebook = find_root() / "notebooks" / "07_sweep.ipynb"
    executed = execute(notebook, folder / "out", {"study": str(folder / "mine.yaml"), "out": str(runs)})
    result = read_json(runs / "result.json")
    assert result["run_seconds"] == {run_name(0): 3.0} and set(result["failed"]) == {run_name(1), run_name(2)}
    assert "Accuracy against loop count" in executed.read_text()

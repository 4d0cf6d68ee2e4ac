"""What can go is listed with its size, and that alone goes: not the best run, nor what a process works on or could go on from."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from looped_lib.config import to_dict
from looped_lib.core.files import read_json, write_json
from looped_lib.runs import prune as module
from looped_lib.runs.experiment import run_experiment
from looped_lib.runs.prune import main, removable, remove
from looped_lib.studies.paper import base
from looped_lib.training.trainer import load_model

HOLD = """
import sys, time
from looped_lib.core.files import holding
with holding(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_experiment(base("smoke"), folder, max_depth=8, progress=False)
    return folder


@pytest.fixture
def make(trained, tmp_path):
    def make(path, accuracy=(0.5,) * 9, lr=1e-3, finished=True):
        """A run at tmp_path/`path` with two real checkpoints and this accuracy at depths 0, 1, ..."""
        folder = tmp_path / path
        shutil.copytree(trained, folder)
        config = to_dict(replace(base("smoke"), training=replace(base("smoke").training, lr=lr)))
        result = read_json(folder / "result.json")
        write_json(folder / "config.json", config)
        write_json(folder / "result.json", {**result, "config": config, "depths": [*range(len(accuracy))], "accuracy": accuracy})
        if not finished:
            (folder / "result.json").unlink()
        return folder

    return make


@pytest.fixture
def hold():
    """Another process that holds a folder until the test ends."""
    processes = []

    def hold(folder):
        process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def leave_behind(path, seconds=7200):
    """Half-written things of that age: a file, or (name without a suffix) a folder with a file in it."""
    file = path if path.suffix else path / "model.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * 1000)
    for p in {file, path}:
        os.utime(p, (time.time() - seconds,) * 2)
    return path


def files(folder):
    return {p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def paths(items):
    return [item.path for item in items]


def test_the_list_is_what_goes_and_nothing_else(make, tmp_path):
    best = make("s/good", accuracy=[0.0] * 8 + [0.9])
    others = [make(f"s/{name}", accuracy=[1.0] * 8 + [0.1]) for name in ("bad", "worse")]
    half = leave_behind(tmp_path / "s" / ".result.json.partial")
    before = files(tmp_path)
    items = removable(tmp_path)
    assert paths(items) == sorted([half, *(run / "checkpoints" for run in others)])
    assert files(tmp_path) == before  # listing deletes nothing
    sizes = {item.path: item.n_bytes for item in items}
    expected = sum(p.stat().st_size for p in files(others[0] / "checkpoints"))
    assert sizes[others[0] / "checkpoints"] == expected > 10_000 and sizes[half] == 1000
    assert remove(items) == items
    assert files(tmp_path) == {p for p in before if not any(p == item.path or item.path in p.parents for item in items)}
    assert load_model(best) and {p.name for p in files(others[0])} == {"config.json", "metrics.jsonl", "result.json"}
    assert removable(tmp_path) == []


def test_best_is_accuracy_at_the_deepest_common_depth_then_the_mean_from_4_on(make, tmp_path):
    make("s/a_deep", accuracy=[0.0] * 8 + [0.2, 1.0])  # measured one deeper than the others: there nothing can be compared
    make("s/b", accuracy=[1.0] * 4 + [0.5] * 4 + [0.8])
    best = make("s/c", accuracy=[0.0] * 4 + [0.6] * 4 + [0.8])
    make("s/d", accuracy=[0.0] * 4 + [0.6] * 4 + [0.8])  # as good: the first by name is kept
    assert set(paths(removable(tmp_path))) == {tmp_path / "s" / name / "checkpoints" for name in ("a_deep", "b", "d")}
    assert "not the best of its study: that is c" in removable(tmp_path)[0].why
    leave_behind(best / "checkpoints" / ".partial_step_00000009")
    assert not any(best in path.parents for path in paths(removable(tmp_path)))


def test_each_study_keeps_its_best_and_the_runs_of_a_sweep_are_one_study(make, tmp_path):
    make("one/x", accuracy=[0.1] * 9)
    make("two/y", accuracy=[0.9] * 9)
    assert removable(tmp_path) == []
    for name, accuracy in (("lr=1", 0.2), ("lr=2", 0.3)):
        make(f"sweep/cpu/{name}/run", accuracy=[accuracy] * 9)
    assert removable(tmp_path) == []  # not run to the end
    for name in ("lr=1", "lr=2"):
        write_json(tmp_path / "sweep" / "cpu" / name / "sweep.json", {})
    worse = tmp_path / "sweep" / "cpu" / "lr=1"
    assert paths(removable(tmp_path)) == paths(removable(worse)) == [worse / "run" / "checkpoints"]


def test_the_finished_parts_of_a_run_of_a_sweep_that_is_not_are_kept(make, tmp_path):
    run = tmp_path / "sweep" / "cpu" / "seed=0"
    for name, accuracy in (("fixed", 0.1), ("stars", 0.9)):
        make(f"sweep/cpu/seed=0/{name}", accuracy=[accuracy] * 9)
    assert len(removable(tmp_path)) == 1  # of a notebook that was run by hand, for all that is known
    for sign in ("sweep.log", "failed.json"):
        (run / sign).touch()
        assert removable(tmp_path) == []
        (run / sign).unlink()


def test_what_is_no_longer_to_go_stays(make, tmp_path):
    good, bad = make("s/good", accuracy=[0.9] * 9), make("s/bad", accuracy=[0.1] * 9)
    items = removable(tmp_path)
    result = read_json(bad / "result.json")
    write_json(bad / "result.json", result | {"accuracy": [1.0] * 9})  # now the best
    assert remove(items) == [] and load_model(bad)
    (bad / "result.json").unlink()  # now unfinished
    assert remove(items) == [] and load_model(bad)
    write_json(bad / "result.json", result)
    assert remove(items) == items and load_model(good)
    with pytest.raises(FileNotFoundError, match="s/bad is finished, but .* were pruned .*: delete the folder and run it anew"):
        load_model(bad)


def test_a_deletion_that_is_killed_leaves_no_half_checkpoint(make, tmp_path, monkeypatch):
    make("s/good", accuracy=[0.9] * 9)
    bad = make("s/bad", accuracy=[0.1] * 9)
    items = removable(tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(module.shutil, "rmtree", lambda path, **k: None if k else (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remove(items)
    assert not (bad / "checkpoints").exists()
    left = bad / ".partial_checkpoints"
    for path in (left, *left.rglob("*")):
        os.utime(path, (time.time() - 7200,) * 2)
    assert paths(removable(tmp_path)) == [left] and remove(removable(tmp_path)) and not left.exists()


def test_a_part_of_a_study_is_measured_by_its_whole(make, tmp_path):
    best = make("s/best", accuracy=[0.9] * 9)
    other = make("s/other", accuracy=[0.1] * 20)
    assert removable(best) == [] and paths(removable(other)) == [other / "checkpoints"]


def test_runs_that_go_on_later_keep_all(make, tmp_path):
    make("s/best", accuracy=[0.9] * 9)
    make("s/killed", finished=False)
    torn = make("s/torn")
    (torn / "result.json").write_text('{"depths": [0')
    changed = make("s/changed")
    write_json(changed / "config.json", to_dict(base("smoke", seed=5)))  # result.json is not of this config
    assert removable(tmp_path) == []


@pytest.mark.parametrize("place", ["s/running", "s"], ids=["the run", "the notebook that runs it"])
def test_where_another_process_works_nothing_goes(make, tmp_path, hold, place):
    make("s/best", accuracy=[0.9] * 9)
    running = make("s/running", accuracy=[0.1] * 9)
    leave_behind(running / "checkpoints" / ".partial_step_00000009")
    leave_behind(running / ".metrics.jsonl.partial")
    free = removable(tmp_path)
    assert len(free) == 2
    process = hold(tmp_path / place)
    before = files(tmp_path)
    assert removable(tmp_path) == []
    assert remove(free) == [] and files(tmp_path) == before  # it came after the list was made
    process.kill()
    process.wait()
    assert removable(tmp_path) == free


def test_recorded_and_fine_tuning_runs_are_never_touched(make, tmp_path):
    for study in ("runs/recorded/s", "runs/s"):
        for accuracy in (0.1, 0.9):
            make(f"{study}/{accuracy}", accuracy=[accuracy] * 9)
        leave_behind(tmp_path / study / ".result.json.partial")
    write_json(tmp_path / "runs" / "s" / "0.1" / "finetune.json", {})
    leave_behind(tmp_path / "runs" / "s" / "0.1" / "checkpoints" / ".partial_step_00000009")
    assert paths(removable(tmp_path)) == [tmp_path / "runs" / "s" / ".result.json.partial"]
    assert removable(tmp_path / "runs" / "recorded" / "s") == []


def test_leftovers_go_once_nobody_can_be_writing_them(make, tmp_path):
    run = make("s/killed", finished=False)
    old = leave_behind(run / "checkpoints" / ".partial_step_00000009")
    leave_behind(run / ".metrics.jsonl.partial", seconds=60)
    young = leave_behind(run / "checkpoints" / ".partial_step_00000010")
    os.utime(young / "model.safetensors")
    leave_behind(run / "partial.txt")
    before = files(run)
    items = removable(tmp_path)
    assert paths(items) == [old] and items[0].n_bytes == 1000
    remove(items)
    assert before - files(run) == {old / "model.safetensors"} and load_model(run)


def test_checkpoints_on_another_disk_are_left_alone(make, tmp_path):
    make("s/best", accuracy=[0.9] * 9)
    run = make("s/other", accuracy=[0.1] * 9)
    shutil.move(run / "checkpoints", tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert removable(tmp_path) == []


def test_the_command_lists_and_deletes_only_if_told_to(make, tmp_path, capsys, hold):
    make("s/best", accuracy=[0.9] * 9)
    run = make("s/other", accuracy=[0.1] * 9)
    megabytes = f"{sum(p.stat().st_size for p in files(run / 'checkpoints')) / 1e6:.2f} MB"
    assert main([str(tmp_path)]) == 0 and (run / "checkpoints").exists()
    listed = capsys.readouterr().out
    assert f"{megabytes}  {run / 'checkpoints'}  finished" in listed and f"{megabytes}  can go, with --delete" in listed
    assert main([str(tmp_path), "--delete"]) == 0 and not (run / "checkpoints").exists()
    deleted = capsys.readouterr().out
    assert str(run / "checkpoints") in deleted and f"{megabytes}  deleted" in deleted
    assert main([str(tmp_path), "--delete"]) == 0 and "0.00 MB  can go\n" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nowhere")])
    assert "there is no folder" in capsys.readouterr().err


def test_a_real_training_process_holds_its_run(make, tmp_path):
    """A finished run that trains on elsewhere: the lock is the one that training takes."""
    make("s/best", accuracy=[0.9] * 9)
    config = replace(base("smoke"), training=replace(base("smoke").training, steps=1_000_000, checkpoint_every=5))
    run = tmp_path / "s" / "training"
    write_json(tmp_path / "config.json", to_dict(config))
    command = [sys.executable, "-m", "looped_lib.training", tmp_path / "config.json", run]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not list(run.glob("checkpoints/step_*")):
                assert process.poll() is None
                time.sleep(0.1)
            write_json(run / "result.json", {"depths": [8], "accuracy": [0.0], "config": read_json(run / "config.json")})
            assert removable(tmp_path) == []
        finally:
            process.kill()
    assert paths(removable(tmp_path)) == [run / "checkpoints"]

"""A folder is held by one process at a time, and let go when that process ends, however it ends."""

import errno
import signal
import subprocess
import sys
import time

import pytest

from looped_lib.core import files
from looped_lib.core.files import Busy, holding, is_locked
from looped_lib.runs.experiment import run_experiment
from looped_lib.studies.paper import base

HOLD = (
    "import sys, time; from looped_lib.core.files import holding\nwith holding(sys.argv[1]): print(1, flush=True); time.sleep(60)"
)


@pytest.fixture
def other(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()


def test_a_folder_is_held_by_one_process_until_it_is_killed(tmp_path, other):
    assert is_locked(tmp_path)
    with pytest.raises(Busy, match=f"another process is at work in {tmp_path}"), holding(tmp_path, patience=0.2):
        pytest.fail("two in one folder")
    other.send_signal(signal.SIGKILL)
    start = time.monotonic()
    with holding(tmp_path, patience=20):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path) and time.monotonic() - start < 10
    assert not is_locked(tmp_path / "absent")


def test_a_run_is_not_trained_by_two_at_once(tmp_path, other, monkeypatch):
    monkeypatch.setattr("looped_lib.training.trainer.holding", lambda folder: holding(folder, patience=0.1))
    with pytest.raises(Busy):
        run_experiment(base("smoke"), tmp_path, max_depth=4, progress=False)
    assert not (tmp_path / "metrics.jsonl").exists()
    other.kill()
    other.wait()
    assert run_experiment(base("smoke"), tmp_path, max_depth=4, progress=False)["depths"][-1] == 4


def test_without_locks_on_a_file_system_work_goes_on_with_a_warning(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=f"{tmp_path}: no locks on this file system"), holding(tmp_path):
        assert not is_locked(tmp_path)


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_json(path, 1)

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        files.write_json(path, 2)
    assert error.value.filename == str(path) and files.read_json(path) == 1 and list(tmp_path.iterdir()) == [path]

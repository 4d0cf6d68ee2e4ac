"""Processes that end with the one that started them, at whatever moment that ends."""

import os
import signal
import socket
import subprocess
import sys

import pytest

WORKER = "import sys, time; from looped_lib.core.parents import end_with_torchrun as end; end(); print('up', flush=True); {then}"
TORCHRUN = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(600)"


def environment(port: int) -> dict[str, str]:
    store = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return os.environ | store | {"TORCHELASTIC_RUN_ID": "1"}


@pytest.fixture
def store():
    """A port that takes connections, as a torchrun's does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_worker_ends_with_its_torchrun(store):
    command = [sys.executable, "-c", TORCHRUN, WORKER.format(then="time.sleep(600)")]
    torchrun = subprocess.Popen(command, env=environment(store), stdout=subprocess.PIPE, text=True)
    assert torchrun.stdout.readline() == "up\n"
    torchrun.send_signal(signal.SIGKILL)
    assert torchrun.stdout.read() == ""  # only when the worker, which has the same stdout, has ended too
    torchrun.wait()


def test_a_worker_whose_torchrun_had_ended_before_does_not_begin(store):
    command = [sys.executable, "-c", WORKER.format(then="")]
    begun = [subprocess.run(command, env=environment(port), capture_output=True) for port in (store, closed_port())]
    assert [done.returncode for done in begun] == [0, -signal.SIGKILL] and [done.stdout for done in begun] == [b"up\n", b""]


@pytest.mark.parametrize("entry", ["looped_lib", "looped_lib.training", "looped_lib.ouro.finetune"])
def test_all_that_torchrun_may_start_looks_for_it_first(entry):
    command = [sys.executable, "-m", entry, "--help"]
    assert subprocess.run(command, env=environment(closed_port()), capture_output=True).returncode == -signal.SIGKILL


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_outside_of_torchrun_nothing_is_asked():
    done = subprocess.run([sys.executable, "-c", WORKER.format(then="")], capture_output=True, text=True)
    assert done.stdout == "up\n" and done.returncode == 0, done.stderr

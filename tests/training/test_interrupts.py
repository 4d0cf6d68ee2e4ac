"""Interrupts at every point of a step, on one process and on two: a whole step is saved, and the run ends in the same weights."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import assert_equal, tiny, weights
from torch import nn

from looped_lib.config import ExperimentConfig, to_dict
from looped_lib.core.interrupts import Terminated, deferred
from looped_lib.core.project import METRICS
from looped_lib.models.looped import LoopedTransformer
from looped_lib.samplers import UniformLoops
from looped_lib.training import checkpoints, metrics, trainer
from looped_lib.training.batches import Batches
from looped_lib.training.carry import Carry
from looped_lib.training.jacobian_penalty import JacobianPenalty
from looped_lib.training.metrics import MetricsLog
from looped_lib.training.objective import Objective
from looped_lib.training.trainer import train

STEP = 4  # counted from 0: the one in which the interrupt comes


def short() -> ExperimentConfig:
    """Every mechanism at once, checkpoints after steps 3, 6 and 8."""
    return replace(tiny(), training=replace(tiny().training, steps=8, checkpoint_every=3, log_every=2))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    train(short(), run_dir, progress=False)
    return run_dir


POINTS = {
    "learning rate": (trainer, "learning_rate"),
    "rows": (Batches, "rows"),
    "loops": (UniformLoops, "sample"),
    "carried rows": (Carry, "start"),
    "forward": (Objective, "forward"),
    "embedding": (LoopedTransformer, "embed"),
    "loop": (LoopedTransformer, "step"),
    "readout": (LoopedTransformer, "readout"),
    "penalty": (JacobianPenalty, "__call__"),
    "carry on": (Carry, "keep"),
    "backward": (torch.Tensor, "backward"),
    "clip": (nn.utils, "clip_grad_norm_"),
    "optimizer": (torch.optim.AdamW, "step"),
    "gradients": (torch.optim.AdamW, "zero_grad"),
    "log": (MetricsLog, "add"),
    "flush": (MetricsLog, "flush"),
    "line": (metrics, "append"),
    "save": (checkpoints, "save"),
    "rename": (os, "replace"),
}


def in_step(monkeypatch, point: str, moment: str, act) -> None:
    """Call `act` once, before or after the call of `point` that first comes in or after step STEP."""
    owner, name = POINTS[point]
    original, steps, left = getattr(owner, name), [], [1]
    take = trainer.Trainer.train_step

    def counted(self):
        steps.append(self.step)
        return take(self)

    def around(*args, **kwargs):
        now = left and steps and steps[-1] >= STEP
        if now:
            left.pop()
        if now and moment == "before":
            act()
        out = original(*args, **kwargs)
        if now and moment == "after":
            act()
        return out

    monkeypatch.setattr(trainer.Trainer, "train_step", counted)
    monkeypatch.setattr(owner, name, around)


HALFWAY = ("rows", "backward", "optimizer", "carry on", "flush", "save")  # where what has been done by then is the trap


@pytest.mark.parametrize("point, moment", [(p, "before") for p in POINTS] + [(p, "after") for p in HALFWAY])
def test_a_signal_at_any_point_of_a_step_ends_in_a_whole_one(undisturbed, tmp_path, monkeypatch, point, moment):
    number, exception = {"before": (signal.SIGINT, KeyboardInterrupt), "after": (signal.SIGTERM, Terminated)}[moment]
    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        in_step(patched, point, moment, lambda: signal.raise_signal(number))
        with pytest.raises(exception, match=r"stopped at step \d; the same command goes on"):
            train(short(), tmp_path, progress=False)
    assert signal.getsignal(number) == before
    stopped = checkpoints.latest(tmp_path / "checkpoints")
    assert STEP < stopped.step <= STEP + 3
    assert {int(t) for name, t in stopped.training.items() if name.endswith(".step")} == {stopped.step}
    train(short(), tmp_path, progress=False)
    assert_equal(weights(tmp_path), weights(undisturbed))


@pytest.mark.parametrize("point", ["optimizer", "carry on", "rename"])
def test_an_exception_in_a_step_saves_nothing(undisturbed, tmp_path, monkeypatch, point):
    """As a second Ctrl-C is one: what the step has moved by then does not belong together."""

    def twice():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        in_step(patched, point, "after", twice)
        with pytest.raises(KeyboardInterrupt):
            train(short(), tmp_path, progress=False)
    assert checkpoints.latest(tmp_path / "checkpoints").step == (6 if point == "rename" else 3)
    train(short(), tmp_path, progress=False)
    assert_equal(weights(tmp_path), weights(undisturbed))


def test_an_interrupt_in_the_last_step_leaves_a_finished_run(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "STEP", 7)
    with monkeypatch.context() as patched:
        in_step(patched, "loop", "after", lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match="step 8"):
            train(short(), tmp_path, progress=False)
    assert_equal(weights(tmp_path), weights(undisturbed))
    assert metrics.read_metrics(tmp_path / METRICS)[-1]["step"] == 8


def test_ignored_and_foreign_handlers_stay_and_are_called():
    heard = []
    before = (
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number)),
        signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        with pytest.raises(Terminated), deferred() as interrupt:
            signal.raise_signal(signal.SIGINT)  # as in a shell's background job
            assert not interrupt.signal
            signal.raise_signal(signal.SIGTERM)
            assert interrupt.signal == signal.SIGTERM and not heard
        assert heard == [signal.SIGTERM]
        with pytest.raises(ZeroDivisionError), deferred():  # an error of the work itself is not hidden
            signal.raise_signal(signal.SIGTERM)
            raise ZeroDivisionError
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


WORKER = """
import os, signal, sys
from looped_lib.core.errors import run
from looped_lib.samplers import UniformLoops
from looped_lib.training import objective, trainer
if os.environ.get("INTERRUPT"):
    rank = int(os.environ["RANK"])
    step, number = [(8, signal.SIGTERM), (4, signal.SIGTERM)][rank]
    forward, clip, calls = objective.Objective.forward, trainer.nn.utils.clip_grad_norm_, []
    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) == step + 1:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)
    if rank == 0:
        original, objective.Objective.forward = forward, interrupted
    else:
        original, trainer.nn.utils.clip_grad_norm_ = clip, interrupted
sys.exit(run(trainer.main, sys.argv[1:]))
"""


def two(config: ExperimentConfig, run_dir: Path, **environment: str) -> subprocess.CompletedProcess:
    script, path = run_dir.with_suffix(".py"), run_dir.with_suffix(".json")
    script.write_text(WORKER)
    path.write_text(json.dumps(to_dict(config)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, path, run_dir]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=240)


def test_two_processes_interrupted_at_different_points_stop_together(tmp_path):
    for name in ("whole", "stopped"):
        done = two(short(), tmp_path / name, **({"INTERRUPT": "1"} if name == "stopped" else {}))
        assert (done.returncode == 0) == (name == "whole"), done.stderr
    assert done.stderr.count("stopped at step 5; the same command goes on") == 1 and "exitcode  : 143" in done.stderr
    assert checkpoints.latest(tmp_path / "stopped" / "checkpoints").step == 5
    assert two(short(), tmp_path / "stopped").returncode == 0
    assert_equal(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))

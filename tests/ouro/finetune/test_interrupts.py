"""Interrupts of fine-tuning end in a whole update and in the same weights; checkpoints of another run are refused."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ouro_jobs import assert_equal, config, inputs, log, run, start, training, weights

from looped_lib.core.files import read_json, write_json
from looped_lib.core.interrupts import Terminated
from looped_lib.ouro.finetune import job, saving
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.ouro.finetune.folder import RESULT, STOP
from looped_lib.ouro.finetune.trainer import LoopedTrainer, Tally
from looped_lib.samplers import UniformLoops
from looped_lib.training.checkpoints import CheckpointError

STEPS = 4
POINTS: dict[str, tuple[type, str]] = {
    "loss": (LoopedTrainer, "compute_loss"),
    "tally": (Tally, "add"),
    "backward": (torch.Tensor, "backward"),
    "clip": (LoopedTrainer, "_clip_grad_norm"),
    "optimizer": (torch.optim.AdamW, "step"),
    "schedule": (torch.optim.lr_scheduler.LambdaLR, "step"),
    "log": (LoopedTrainer, "log"),
    "line": (job.MetricsFile, "on_log"),
    "end of the update": (job.Stops, "on_step_end"),
}


def settings(folder: Path, **changes) -> FinetuneConfig:
    """No checkpoint before the last, but that of an interrupt."""
    every = {
        "steps": STEPS,
        "micro_batch": 4,
        "loops": UniformLoops(low=1, high=3),
        "schedule": "cosine",
        "checkpoint_every": 100,
    }
    return config(folder, **every | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    with inputs(tmp_path_factory.mktemp("interrupts")) as folder:
        job.finetune(settings(folder), folder / "whole")
        yield folder


def second_time(point: str, act: Callable[[], None], set_attribute: Callable = setattr) -> None:
    """Call `act` before the call of `point` that comes second."""
    owner, name = POINTS[point]
    original, calls = getattr(owner, name), []

    def around(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2:
            act()
        return original(*args, **kwargs)

    set_attribute(owner, name, around)


@pytest.mark.parametrize("point", POINTS)
def test_a_signal_at_any_point_of_an_update_ends_in_a_whole_one(folder, tmp_path, monkeypatch, point):
    number = signal.SIGTERM if point == "optimizer" else signal.SIGINT
    with monkeypatch.context() as patched:
        second_time(point, lambda: signal.raise_signal(number), patched.setattr)
        with pytest.raises((KeyboardInterrupt, Terminated), match=r"stopped at update \d; the same command goes on"):
            job.finetune(settings(folder), tmp_path / "run")
    (stopped,) = saving.checkpoints(tmp_path / "run")
    assert 1 <= saving.step_of(stopped) <= 3 and (tmp_path / "run" / STOP).exists()
    assert {int(t) for name, t in training(tmp_path / "run", saving.step_of(stopped)).items() if name.endswith(".step")} == {
        saving.step_of(stopped)
    }
    job.finetune(settings(folder), tmp_path / "run")
    assert_equal(weights(tmp_path / "run", STEPS), weights(folder / "whole", STEPS))
    assert_equal(training(tmp_path / "run", STEPS, ""), training(folder / "whole", STEPS, ""))


def test_an_interrupt_in_the_last_update_leaves_the_end_to_the_next_command(folder, tmp_path, monkeypatch):
    c = settings(folder, steps=2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt, match="stopped at update 2"):
        second_time("optimizer", lambda: signal.raise_signal(signal.SIGINT), patched.setattr)
        job.finetune(c, tmp_path / "run")
    assert not (tmp_path / "run" / RESULT).exists()
    job.finetune(c, tmp_path / "run")
    assert (tmp_path / "run" / RESULT).exists()


def interrupt_both(rank: int) -> None:
    """SIGTERM to each process, at different points of the second update or the one after it."""
    second_time(["backward", "end of the update"][rank], lambda: os.kill(os.getpid(), signal.SIGTERM))


def test_two_processes_interrupted_at_different_points_stop_together(folder, tmp_path):
    c, run_dir = settings(folder, parallel="fsdp2"), folder / "two"
    assert start([(c, run_dir)], 2, interrupt_both).statuses() == [143, 143], log(run_dir, 0) + log(run_dir, 1)
    (stopped,) = saving.checkpoints(run_dir)
    said = log(run_dir, 0) + log(run_dir, 1)
    assert said.count(f"stopped at update {saving.step_of(stopped)}; the same command goes on") == 1 and "Traceback" not in said
    run([(c, run_dir)], 2)
    run([(c, folder / "undisturbed")], 2)
    assert_equal(weights(run_dir, STEPS), weights(folder / "undisturbed", STEPS))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)


def change(path: Path, **changes) -> None:
    write_json(path, read_json(path) | changes)


WRONG = {
    "renamed": (lambda c: c.rename(c.with_name("step_00000003")), "trainer_state.json: global_step must be 3.*got 4"),
    "another step": (
        lambda c: change(c / "trainer_state.json", global_step=2),
        "trainer_state.json: global_step must be 4.*got 2",
    ),
    "past the end": (
        lambda c: (change(c / "trainer_state.json", global_step=5), c.rename(c.with_name("step_00000005"))),
        "trainer_state.json: global_step must be at most 4, got 5",
    ),
    "another run's": (lambda c: change(c / "run.json", seed=9), r"run.json: it is of a run with other settings \(seed\)"),
    "no config": (lambda c: (c / "run.json").unlink(), "run.json cannot be read"),
    "a list": (lambda c: (c / "schedule.json").write_text("[]"), "schedule.json: must be a mapping"),
    "not JSON": (lambda c: cut(c / "trainer_state.json"), "trainer_state.json cannot be read"),
    "not UTF-8": (lambda c: (c / "run.json").write_bytes(b"\xff"), "run.json cannot be read"),
    "cut": (lambda c: cut(c / "training.state"), "training.state is damaged: its checksum is not the one in sha256.json"),
    "one bit": (lambda c: flip(c / "model.safetensors"), "model.safetensors is damaged"),
    "a tensor file more": (lambda c: shutil.copy(c / "model.safetensors", c / "a.safetensors"), "a.safetensors is damaged"),
    "one file less": (lambda c: (c / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "no checksums": (lambda c: write_json(c / "sha256.json", {}), "model.safetensors is damaged"),
    "of before": (
        lambda c: [(c / name).unlink() for name in ("run.json", "sha256.json")],
        "has no sha256.json: it is of an earlier version.* Start a new run with it as FinetuneConfig.model, or",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_checkpoint_that_is_not_this_run_s_is_refused(folder, tmp_path, monkeypatch, wrong):
    run_dir = shutil.copytree(folder / "whole", tmp_path / "run")
    (run_dir / RESULT).unlink()
    damage, message = WRONG[wrong]
    damage(saving.checkpoint_folder(run_dir, STEPS))
    with pytest.raises(CheckpointError, match=f"{message}.*delete .*checkpoints"):
        job.finetune(settings(folder), run_dir)


def test_moments_of_another_size_are_refused(folder):
    checkpoint = saving.checkpoint_folder(folder / "whole", STEPS)
    moments = saving.read_training(checkpoint, "adamw.")
    model = job.load_model(settings(folder), job.load_architecture(settings(folder)), checkpoint)
    saving.check_moments(checkpoint, model, moments)
    name = next(name for name, moment in moments.items() if moment.ndim == 2)
    with pytest.raises(CheckpointError, match=f"training.state: the size of {name} must be"):
        saving.check_moments(checkpoint, model, moments | {name: moments[name][:-1]})

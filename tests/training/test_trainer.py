"""The training loop: exact resume after SIGKILL, invariance to accumulation and processes, errors that teach."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import assert_equal, plain, tiny, train_by_command, train_in_two_processes, weights

from looped_lib.config import CarryConfig, ConfigError, ExperimentConfig, ModelConfig, TrainingConfig, to_dict
from looped_lib.models.looped import LoopedTransformer
from looped_lib.samplers import FixedLoops
from looped_lib.tasks.addition import Addition
from looped_lib.training.carry import Carry
from looped_lib.training.trainer import Trainer, learning_rate, load_model, train


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    train(tiny(), run_dir, progress=False)
    return run_dir


def start(config_path: Path, run_dir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "looped_lib.training", config_path, run_dir],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2])
def test_killed_run_resumes_to_identical_weights(uninterrupted, tmp_path, delay):
    config_path = tmp_path / "config.json"
    config_path.write_text(json.dumps(to_dict(tiny())))
    run_dir = tmp_path / "run"
    process = start(config_path, run_dir)
    deadline = time.monotonic() + 120
    while not list(run_dir.glob("checkpoints/step_*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
    process.communicate()
    process = start(config_path, run_dir)
    error = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 0, error
    assert_equal(weights(run_dir), weights(uninterrupted))
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 24


def test_stopping_at_any_step_and_resuming_changes_nothing(uninterrupted, tmp_path, monkeypatch):
    """Ctrl-C after each of several steps: the run goes on where it stood, to the same weights."""
    one_step = Trainer.train_step
    stops = {1, 5, 6, 13, 23}

    def interrupted(self):
        if self.step in stops:
            stops.discard(self.step)
            raise KeyboardInterrupt
        return one_step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    for _ in range(len(stops)):
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), tmp_path, progress=False)
    train(tiny(), tmp_path, progress=False)
    assert_equal(weights(tmp_path), weights(uninterrupted))


def test_a_finished_run_is_not_trained_again(uninterrupted, monkeypatch):
    monkeypatch.setattr(Trainer, "train_step", lambda self: pytest.fail("trained again"))
    before = weights(uninterrupted)
    train(tiny(), uninterrupted, progress=False)
    assert_equal(weights(uninterrupted), before)


def test_seed_changes_the_run_and_nothing_else_does(uninterrupted, tmp_path):
    torch.manual_seed(123)  # the caller's generator neither matters nor moves
    expected = torch.random.get_rng_state()
    train(tiny(), tmp_path / "same", progress=False)
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert_equal(weights(tmp_path / "same"), weights(uninterrupted))
    train(tiny(seed=1), tmp_path / "other", progress=False)
    assert not torch.equal(
        weights(tmp_path / "other")["token_embedding.weight"], weights(uninterrupted)["token_embedding.weight"]
    )


def test_accumulation_does_not_change_the_run(tmp_path):
    train(plain(1), tmp_path / "1", progress=False)
    train(plain(4), tmp_path / "4", progress=False)
    a, b = weights(tmp_path / "1"), weights(tmp_path / "4")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_two_processes_train_the_same_model(tmp_path):
    train_in_two_processes(plain(), tmp_path / "two")
    train(plain(), tmp_path / "one", progress=False)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_a_run_of_two_processes_goes_on_with_two(tmp_path):
    """Each has carried rows and probe vectors of its own. (That it then ends in the same bits: `test_interrupts`.)"""
    train_in_two_processes(tiny(), tmp_path / "run")
    with pytest.raises(ConfigError, match="saved by 2 processes"):
        train(tiny(), tmp_path / "run", progress=False)


def apart(a: dict, b: dict) -> float:
    """How far two trained `plain()` models lie from each other, as a share of the way that training moved the first."""
    start = LoopedTransformer(plain().model).state_dict()
    moved = torch.cat([(a[name] - start[name]).flatten() for name in a])
    return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm() / moved.norm())


def test_bf16_trains_nearly_the_same_model(tmp_path):
    for precision in ("fp32", "bf16"):
        train(plain(precision=precision), tmp_path / precision, progress=False)
    exact, rounded = weights(tmp_path / "fp32"), weights(tmp_path / "bf16")
    assert all(w.dtype == torch.float32 for w in rounded.values())
    assert 0 < apart(exact, rounded) < 0.1


def test_compiled_steps_train_the_same_model(tmp_path):
    train(plain(), tmp_path / "eager", progress=False)
    train_by_command(plain(compile=True), tmp_path / "compiled")  # the compiler cannot trace through the checks
    gap = apart(weights(tmp_path / "eager"), weights(tmp_path / "compiled"))
    assert gap < 1e-3, gap


def test_one_depth_per_sequence_equals_each_sequence_alone(tmp_path):
    config = plain(per_sequence_loops=True)
    trainer = Trainer(config, tmp_path, progress=False)
    trainer.model.eval()
    rows = trainer.batches.rows(0)
    inputs, labels = trainer.problems.inputs[rows], trainer.labels[rows]
    depths = torch.from_numpy(config.loops.sample(config.seed, 0, len(rows)))
    h = trainer.objective(inputs, labels, depths, int(depths.max()), None, 0, 0).last
    assert len(set(depths.tolist())) > 1
    for i, n in enumerate(depths.tolist()):
        alone = trainer.objective(inputs[i : i + 1], labels[i : i + 1], n, n, None, 0, 0).last
        torch.testing.assert_close(h[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_every_epoch_shows_every_problem_once(tmp_path):
    trainer = Trainer(plain(), tmp_path, progress=False)
    n, batch = 100, 16
    seen = torch.cat([trainer.batches.rows(step) for step in range(2 * n // batch + 1)])
    for epoch in (seen[:n], seen[n : 2 * n]):
        assert sorted(epoch.tolist()) == list(range(n))
    assert not torch.equal(seen[:n], seen[n : 2 * n])


def test_carried_rows_grow_old_and_are_replaced_when_wrong_or_old():
    carry = Carry(CarryConfig(share=0.5, max_loops=10), batch_rows=6)
    inputs, last = torch.arange(6)[:, None], torch.arange(6.0)[:, None, None]
    limits = torch.tensor([4, 100, 100])
    assert carry.start(0, inputs, inputs)[2] is None
    carry.keep(0, 3, inputs, inputs, last, torch.ones(6, dtype=torch.bool), limits)
    assert carry.tensors["age"].tolist() == [3, 3, 3] and carry.tensors["inputs"].flatten().tolist() == [3, 4, 5]
    mixed, _, state = carry.start(1, inputs + 10, inputs)
    assert mixed.flatten().tolist() == [3, 4, 5, 13, 14, 15] and state.flatten().tolist() == [3, 4, 5]
    carry.keep(1, 2, mixed, mixed, last + 20, torch.tensor([True, True, False, True, True, True]), limits)
    # row 0 reached its limit of 4, row 2 was wrong: both begin again as fresh rows 0 and 2 of this batch
    assert carry.tensors["age"].tolist() == [2, 5, 2]
    assert carry.tensors["inputs"].flatten().tolist() == [13, 4, 15]
    assert carry.tensors["state"].flatten().tolist() == [23, 21, 25]


def test_it_learns(tmp_path):
    """One digit has 81 problems: a few hundred steps must fit them."""
    config = ExperimentConfig(
        model=ModelConfig(d_model=32, n_heads=2, d_ff=64, dropout=0.0, max_len=8, init_std=0.1),
        loops=FixedLoops(2),
        data=Addition(digits=1, n_train=71, n_test=10),
        training=TrainingConfig(steps=300, batch_size=64, lr=5e-3, warmup_steps=20),
    )
    train(config, tmp_path, progress=False)
    losses = [json.loads(line)["ce"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.1 < losses[0]


def test_learning_rate_warms_up_and_follows_the_cosine():
    c = TrainingConfig(steps=110, warmup_steps=10, lr=2.0, lr_end=0.1)
    assert learning_rate(c, 0) == pytest.approx(0.2) and learning_rate(c, 9) == pytest.approx(2.0)
    assert learning_rate(c, 60) == pytest.approx(2.0 * 0.55) and learning_rate(c, 110) == pytest.approx(0.2)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    one_step = Trainer.train_step

    def spoiled(self):
        values = one_step(self)
        return {**values, "loss": values["loss"] * float("nan")} if self.step == 10 else values

    monkeypatch.setattr(Trainer, "train_step", spoiled)
    with pytest.raises(FloatingPointError, match=r"nan at step 10, depth \d.*step_00000008"):
        train(tiny(), tmp_path, progress=False)


def test_a_folder_of_another_experiment_is_refused(uninterrupted):
    with pytest.raises(ConfigError, match="another experiment .seed 0 there, 7 here"):
        train(tiny(seed=7), uninterrupted, progress=False)


def test_a_batch_that_cannot_be_split_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="batch_size must be a multiple of processes x accumulation"):
        train(tiny(), tmp_path, progress=False)


def test_problems_longer_than_the_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="max_len must be at least"):
        train(replace(tiny(), model=replace(tiny().model, max_len=5)), tmp_path, progress=False)


def test_load_model_returns_the_trained_weights(uninterrupted, tmp_path):
    assert_equal(load_model(uninterrupted).state_dict(), weights(uninterrupted))
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        load_model(tmp_path)

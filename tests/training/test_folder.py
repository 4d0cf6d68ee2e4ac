"""What a run's folder says is not taken on trust: checkpoints of another step, run or size are refused, and records are kept."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import plain, tiny, weights

from looped_lib.config import CarryConfig, ConfigError, ExperimentConfig
from looped_lib.core.files import read_json, write_json
from looped_lib.training import checkpoints
from looped_lib.training.carry import Carry
from looped_lib.training.checkpoints import CheckpointError
from looped_lib.training.trainer import Trainer, load_model, train


def short(**changes) -> ExperimentConfig:
    config = tiny(**changes)
    return replace(config, training=replace(config.training, steps=6, checkpoint_every=4))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two runs of six steps that differ in their seed, and one of another width."""
    folder = tmp_path_factory.mktemp("made")
    for name, config in {
        "run": short(),
        "other": short(seed=1),
        "wide": short(model=replace(tiny().model, d_ff=40)),
    }.items():
        train(config, folder / name, progress=False)
    return folder


@pytest.fixture
def run(made, tmp_path) -> Path:
    return shutil.copytree(made / "run", tmp_path / "run")


def checkpoint(run_dir: Path) -> Path:
    return sorted((run_dir / "checkpoints").iterdir())[-1]


def change_state(run_dir: Path, **changes) -> None:
    path = checkpoint(run_dir) / "state.json"
    write_json(path, read_json(path) | changes)


def swap(run_dir: Path, made: Path, name: str) -> None:
    """Another run's checkpoint of the same step in the place of this one's."""
    shutil.rmtree(checkpoint(run_dir))
    shutil.copytree(checkpoint(made / name), run_dir / "checkpoints" / "step_00000006")


def other_weights(run_dir: Path, made: Path) -> None:
    """Whole, with the right sums, and of another size."""
    for name in ("model.safetensors", "training.safetensors"):
        shutil.copy(checkpoint(made / "wide") / name, checkpoint(run_dir) / name)
    change_state(run_dir, sha256=read_json(checkpoint(made / "wide") / "state.json")["sha256"])


def without_a_weight(run_dir: Path) -> None:
    path = checkpoint(run_dir) / "model.safetensors"
    kept = {k: v for k, v in load_file(path).items() if k != "token_embedding.weight"}
    save_file(kept, path)
    state = read_json(checkpoint(run_dir) / "state.json")
    change_state(run_dir, sha256=state["sha256"] | {"model.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()})


WRONG = {
    "renamed": (
        lambda run, made: checkpoint(run).rename(run / "checkpoints" / "step_00000008"),
        "state.json: step must be .*got 6",
    ),
    "earlier": (lambda run, made: change_state(run, step=5), "state.json: step must be .*got 5"),
    "far": (lambda run, made: change_state(run, step=10**9), "state.json: step must be .*got 1000000000"),
    "not a number": (lambda run, made: change_state(run, step=6.0), r"state.json: step must be .*got 6\.0"),
    "past the end": (
        lambda run, made: (change_state(run, step=8), checkpoint(run).rename(run / "checkpoints" / "step_00000008")),
        "state.json: step must be at most 6, got 8",
    ),
    "another run's": (
        lambda run, made: swap(run, made, "other"),
        r"state.json: config must be that of .*config.json.*differs: seed",
    ),
    "another model's": (lambda run, made: swap(run, made, "wide"), r"state.json: config must be that of .*differs: model"),
    "no config": (lambda run, made: change_state(run, config=None), "state.json: ExperimentConfig must be"),
    "sizes": (other_weights, r"model.safetensors: the size of layers.*must be .*32.*got .*40"),
    "a weight is missing": (
        lambda run, made: without_a_weight(run),
        r"the size of token_embedding.weight must be \(15, 16\), got none",
    ),
    "no sums": (lambda run, made: change_state(run, sha256=[1]), "state.json cannot be read"),
    "not UTF-8": (
        lambda run, made: (checkpoint(run) / "state.json").write_bytes(b'{"step": "\xff"}'),
        "state.json cannot be read",
    ),
    "brackets": (lambda run, made: (checkpoint(run) / "state.json").write_text("[" * 10**5), "state.json cannot be read"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_checkpoint_that_is_not_this_run_s_is_refused(made, run, wrong):
    change, message = WRONG[wrong]
    change(run, made)
    before = (run / "metrics.jsonl").read_bytes()
    for use in (lambda: load_model(run), lambda: train(short(), run, progress=False)):
        with pytest.raises(CheckpointError, match=f"{message}.*; delete .*step_") as refused:
            use()
        assert "\n" not in str(refused.value)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_config_younger_than_the_checkpoint_has_its_defaults(run):
    for path in (run / "config.json", checkpoint(run) / "state.json"):
        old = read_json(path)
        del old.get("config", old)["training"]["backprop_loops"]
        write_json(path, old)
    load_model(run)
    train(short(), run, progress=False)


def test_other_names_are_no_checkpoints(run):
    (run / "checkpoints" / "step_of_mine").mkdir()
    assert checkpoints.latest(run / "checkpoints").step == 6


def test_a_finished_run_without_weights_is_not_trained_over(run):
    write_json(run / "result.json", {})
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.jsonl").read_bytes()
    for use in (lambda: load_model(run), lambda: train(short(), run, progress=False)):
        with pytest.raises(FileNotFoundError, match="is finished, but its checkpoint is not there.*another folder"):
            use()
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_trainer_claims_nothing_before_it_runs(tmp_path):
    """Single steps need no folder, and say nothing of one."""
    trainer = Trainer(plain())
    assert trainer.train_step()["loss"] > 0
    with pytest.raises(ValueError, match="needs a folder"):
        trainer.run()
    Trainer(plain(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_number_of_threads_is_recorded_and_a_change_is_told(run):
    assert read_json(checkpoint(run) / "state.json")["threads"] == torch.get_num_threads()
    change_state(run, threads=5)
    with pytest.warns(UserWarning, match="5 threads, and this one has 1.*OMP_NUM_THREADS=5"):
        train(short(), run, progress=False)


def test_what_a_training_sets_for_the_process_is_taken_back(tmp_path):
    """TF32, torch's random numbers, and that malloc keeps what is freed: a large block goes back to the system again."""
    script = """
import json, sys
from pathlib import Path
import torch
from looped_lib.training import trainer
from small_runs import plain

def left():  # bytes resident after a large block was freed, less those before it
    rss = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    before = rss()
    torch.ones(2**26)
    return rss() - before

tf32 = lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
flags = lambda: (*tf32(), torch.get_num_threads(), torch.get_rng_state().tolist())
step, during = trainer.Trainer.train_step, []
trainer.Trainer.train_step = lambda self: (during.append((left(), flags())), step(self))[1]
before = flags()
trainer.train(plain(precision="tf32"), sys.argv[1], progress=False)
print(json.dumps([during[0][0], left(), during[0][1][:2], before == flags()]))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=240)
    during, after, tf32, same = json.loads(done.stdout.splitlines()[-1]) if done.stdout else done.stderr
    assert during > 2**27 > after and tf32 == [True, True] and same


@pytest.mark.parametrize(
    "share, rows, carried", [(0.05, 16, 1), (0.29, 100, 29), (0.5, 7, 3), (0.25, 16, 4), (0.0, 16, 0), (0.3, 2, 1)]
)
def test_a_share_of_carried_rows_is_at_least_one(share, rows, carried):
    assert Carry(CarryConfig(share=share), rows).rows == carried


def test_a_part_of_one_row_cannot_carry():
    with pytest.raises(ConfigError, match="CarryConfig.share needs at least 2 rows"):
        Carry(CarryConfig(share=0.5), 1)


def test_weights_are_those_of_the_newest(run):
    assert weights(run).keys() == load_model(run).state_dict().keys()

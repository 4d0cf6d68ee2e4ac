"""Checkpoints of fine-tuning: bit-identical after a kill or a stop, on DDP, FSDP2 and LoRA; whole or not there; a full disk."""

import errno
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ouro_jobs import assert_equal, config, inputs, log, metrics, run, start, training
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from looped_lib.config import PenaltyConfig
from looped_lib.core.files import read_json
from looped_lib.ouro.finetune import job, saving
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.ouro.finetune.folder import STOP
from looped_lib.samplers import UniformLoops
from looped_lib.training.processes import Processes

STEPS = 8
SAME = ("step", "loss", "penalty", "n_loops", "learning_rate", "grad_norm", "epoch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    with inputs(tmp_path_factory.mktemp("saving")) as folder:
        yield folder


def interrupted(folder: Path, **changes) -> FinetuneConfig:
    """Every mechanism at once, over more than two epochs: depths, penalty, accumulation, a schedule that always moves."""
    return config(
        folder,
        **{
            "steps": STEPS,
            "micro_batch": 2,
            "loops": UniformLoops(low=1, high=4),
            "penalty": PenaltyConfig(weight=0.2, share=0.5, onset=2),
            "schedule": "cosine",
            "warmup_ratio": 0.3,
            "checkpoint_every": 3,
        }
        | changes,
    )


FIXED = {
    "loops": UniformLoops(low=2, high=2),
    "penalty": PenaltyConfig(weight=0.2, share=1.0, onset=0, product="finite_difference"),
}
KINDS = {"ddp": {}, "fsdp2": {"parallel": "fsdp2", **FIXED}, "lora": {"lora_rank": 2, **FIXED}}


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """Runs on two processes that nothing disturbed."""
    (folder / "whole").mkdir()
    run([(interrupted(folder, **changes), folder / "whole" / kind) for kind, changes in KINDS.items()], 2)
    return folder / "whole"


def stop_after(rank: int, step: int) -> None:
    """Ask each run of the job to stop once its `step` is logged."""
    on_log = job.MetricsFile.on_log

    def asking(self, args, state, control, logs=None, **kwargs):
        on_log(self, args, state, control, logs, **kwargs)
        if state.global_step == step and rank == 0:
            (self.path.parent / STOP).touch()

    job.MetricsFile.on_log = asking


@pytest.fixture(scope="module")
def resumed(folder, whole) -> Path:
    """The same runs, stopped on the way and started again."""
    (folder / "resumed").mkdir()
    runs = [(interrupted(folder, **changes), folder / "resumed" / kind) for kind, changes in KINDS.items()]
    run(runs, 2, stop_after, 3)
    for kind in KINDS:
        run_dir = folder / "resumed" / kind
        assert [path.name for path in saving.checkpoints(run_dir)] == ["step_00000003", "step_00000004"]
        assert metrics(run_dir)[-1]["step"] == 4 and not (run_dir / "result.json").exists()
    shutil.copytree(folder / "resumed", folder / "stopped")
    run(runs, 2)
    return folder / "resumed"


def final(run_dir: Path, where: str = f"checkpoints/step_{STEPS:08d}") -> dict[str, torch.Tensor]:
    """The weights, or adapters, that a run ended with."""
    (file,) = [path for path in (run_dir / where).glob("*model.safetensors")]
    return load_file(file)


def assert_same(a: Path, b: Path) -> None:
    """Weights, moments, random states and log, to the last bit; every update logged once."""
    assert_equal(final(a), final(b))
    for x in (a, b):
        assert_equal(final(x), final(x, "model"))
    assert_equal(training(a, STEPS, ""), training(b, STEPS, ""))
    lines = [[{key: line[key] for key in SAME} for line in metrics(x)] for x in (a, b)]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == list(range(1, STEPS + 1))
    assert read_json(saving.checkpoint_folder(a, STEPS) / saving.SCHEDULE) == read_json(
        saving.checkpoint_folder(b, STEPS) / saving.SCHEDULE
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_to_the_same_bits(whole, resumed, kind):
    assert_same(whole / kind, resumed / kind)


def test_what_is_restored_is_what_was_saved(folder, resumed):
    """Moments and their count, the schedule, every process's random state: put back before the first update."""
    checkpoint = saving.checkpoint_folder(folder / "stopped" / "ddp", 4)
    processes = Processes(0, 1, torch.device("cpu"))
    trainer = job.prepare(interrupted(folder), folder / "stopped" / "ddp", processes)
    trainer.create_optimizer()
    trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
    trainer.create_scheduler(STEPS)
    trainer._load_optimizer_and_scheduler(str(checkpoint))
    saved = saving.read_training(checkpoint, "")
    moments = {name: w for name, w in saved.items() if name.startswith("adamw.")}
    assert_equal(saving.whole_moments(trainer.model, trainer.optimizer.optimizer), moments)
    assert {int(w) for name, w in moments.items() if name.endswith(".step")} == {4}
    assert all(w.abs().max() > 0 for name, w in moments.items() if name.endswith("exp_avg"))
    line = metrics(resumed / "ddp")[4]
    assert trainer.lr_scheduler.get_last_lr() == [g["lr"] for g in trainer.optimizer.param_groups] == [line["learning_rate"]] * 2
    torch.manual_seed(1)
    trainer._load_rng_state(str(checkpoint))
    assert torch.equal(torch.get_rng_state(), saved["random.0.cpu"])
    assert saved.keys() - moments.keys() == {"random.0.cpu", "random.1.cpu"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_another_number_of_processes(folder, whole, resumed, kind):
    """Where depths are fixed, to the same weights up to rounding; drawn ones are others then, as each is of a micro-batch."""
    run_dir = folder / "stopped" / kind
    job.finetune(interrupted(folder, **KINDS[kind]), run_dir)
    lines, expected = metrics(run_dir), metrics(whole / kind)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)) and lines[:4] == metrics(resumed / kind)[:4]
    if kind != "ddp":
        for name in ("loss", "penalty", "grad_norm"):
            assert [line[name] for line in lines] == pytest.approx([line[name] for line in expected], rel=1e-5)
        for name, w in final(run_dir).items():
            torch.testing.assert_close(w, final(whole / kind)[name], rtol=0, atol=1e-5)


def slow_saving(rank: int) -> None:
    """A checkpoint takes long enough to be killed in the middle of it."""
    write = saving.write_training

    def slowly(folder, *args):
        time.sleep(1)
        write(folder, *args)

    saving.write_training = slowly


@pytest.mark.parametrize("moment", ["checkpoint", "partial"])
def test_a_killed_run_goes_on_to_the_same_bits(folder, whole, tmp_path, moment):
    """Right after a checkpoint appears, or in the middle of writing the second one."""
    run_dir, c = tmp_path / "run", interrupted(folder)
    wanted = {"checkpoint": "step_00000003", "partial": ".partial_step_00000006/model.safetensors"}[moment]
    job = start([(c, run_dir)], 2, *([slow_saving] if moment == "partial" else []))
    deadline = time.monotonic() + 120
    while not (run_dir / "checkpoints" / wanted).exists() and time.monotonic() < deadline:
        assert all(process.is_alive() for process in job.processes), log(run_dir, 0)
        time.sleep(0.002)
    for process in job.processes:
        process.kill()
    assert job.statuses() == [-signal.SIGKILL] * 2
    found = saving.checkpoints(run_dir)
    assert found and metrics(run_dir)[-1]["step"] - saving.step_of(found[-1]) <= c.updates.checkpoint_every
    for checkpoint in found:
        assert_whole(checkpoint, processes=2)
    run([(c, run_dir)], 2)
    assert_same(whole / "ddp", run_dir)
    assert not list((run_dir / "checkpoints").glob(".partial*"))


def assert_whole(checkpoint: Path, processes: int) -> None:
    """Loadable by name, with nothing pickled in it."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert_equal(dict(model.state_dict()), load_file(checkpoint / "model.safetensors"))
    tensors = saving.read_training(checkpoint, "")
    trained = {name for name, _ in model.named_parameters() if "early_exit_gate" not in name}
    moments = {f"adamw.{name}.{key}" for name in trained for key in ("exp_avg", "exp_avg_sq", "step")}
    assert tensors.keys() == moments | {f"random.{rank}.cpu" for rank in range(processes)}
    assert {path.suffix for path in checkpoint.iterdir()} <= {".safetensors", ".state", ".json", ".jinja"}
    assert read_json(checkpoint / "trainer_state.json")["global_step"] == saving.step_of(checkpoint)


def test_every_checkpoint_is_a_model_and_nothing_is_pickled(whole):
    for kind in ("ddp", "fsdp2"):
        found = saving.checkpoints(whole / kind)
        assert [saving.step_of(path) for path in found] == [3, 6, 8]
        for checkpoint in found:
            assert_whole(checkpoint, processes=2)


def test_a_kill_before_the_final_model_is_written_trains_nothing_more(folder, whole, tmp_path):
    run_dir = shutil.copytree(whole / "ddp", tmp_path / "run")
    (run_dir / "result.json").unlink()
    shutil.rmtree(run_dir / "model")
    job.finetune(interrupted(folder), run_dir)
    assert_same(whole / "ddp", run_dir)


def test_a_finished_run_is_left_alone(folder, whole, monkeypatch):
    monkeypatch.setattr(job, "load_data", lambda *a: pytest.fail("trained again"))
    job.finetune(interrupted(folder), whole / "ddp")


def test_the_newest_checkpoints_are_kept(tmp_path, monkeypatch):
    for step in (1, 2, 10, 30):
        saving.checkpoint_folder(tmp_path, step).mkdir(parents=True)
    saving.prune(tmp_path, 3)
    assert [saving.step_of(path) for path in saving.checkpoints(tmp_path)] == [2, 10, 30]
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # killed while it deletes files: what is left is not taken for a checkpoint
        saving.prune(tmp_path, 1)
    assert [saving.step_of(path) for path in saving.checkpoints(tmp_path)] == [10, 30]
    monkeypatch.undo()
    with saving.writing(saving.checkpoint_folder(tmp_path, 40), tmp_path):
        pass
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000010",
        "step_00000030",
        "step_00000040",
    ]


def test_a_full_disk_ends_the_run_with_one_error_and_keeps_what_is_whole(folder, tmp_path, monkeypatch):
    c, run_dir, saved = interrupted(folder), tmp_path / "run", []

    def save_file(tensors, path):
        saved.append(path)
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    save = saving.save_file
    monkeypatch.setattr(saving, "save_file", save_file)
    with pytest.raises(saving.SaveError, match=r"step_00000006 could not be written .*No space.*: step_00000003\. Make room"):
        job.finetune(c, run_dir)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_00000003"]
    assert_whole(run_dir / "checkpoints" / "step_00000003", processes=1)
    monkeypatch.undo()
    for where in (run_dir, tmp_path / "undisturbed"):
        job.finetune(c, where)
    assert_same(tmp_path / "undisturbed", run_dir)


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "bad sector"), SafetensorError("no space")])
def test_a_folder_that_cannot_be_written_leaves_what_was_there(tmp_path, failure):
    target = tmp_path / "model"
    with saving.writing(target, tmp_path) as folder:
        (folder / "weights").write_text("old")
    with pytest.raises(saving.SaveError, match="model could not be written .*Whole checkpoints: none"):
        with saving.writing(target, tmp_path) as folder:
            (folder / "weights").write_text("new")
            raise failure
    assert (target / "weights").read_text() == "old" and list(tmp_path.iterdir()) == [target]


def small_files(rank: int, size: int) -> None:
    """Writing more than `size` bytes to a file fails, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_writes_that_really_fail_are_one_error_line_of_the_job(folder):
    run_dir = folder / "full"
    job.finetune(interrupted(folder, steps=1), folder / "first")  # caches the tokenised rows
    size = (folder / "first" / "model" / "model.safetensors").stat().st_size
    started = start([(interrupted(folder), run_dir)], 2, small_files, size - 1)
    assert started.statuses() == [1, 1]
    printed = log(run_dir, 0) + log(run_dir, 1)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "step_00000003 could not be written" in errors[0] and "Whole checkpoints: none" in errors[0]
    assert "Traceback" not in printed and not list((run_dir / "checkpoints").iterdir())

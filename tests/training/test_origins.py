"""A run may begin at a checkpoint of another: with its weights alone, or as the same run made longer."""

import shutil
from dataclasses import replace

import pytest
import torch
from small_runs import tiny, weights

from looped_lib.config import ConfigError, StartConfig
from looped_lib.core.files import read_json
from looped_lib.runs.experiment import run_experiment
from looped_lib.training.trainer import Trainer, load_model, train


def steps(config, n, **training):
    """Without a schedule, so that a run of twice the steps is what a longer one should be."""
    return replace(config, training=replace(config.training, steps=n, warmup_steps=0, lr_end=1.0, checkpoint_every=4, **training))


def begins(config, run, keep="weights"):
    return replace(config, start=StartConfig(run=str(run), keep=keep))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    train(steps(tiny(), 6), folder / "short", progress=False)
    train(steps(tiny(), 12), folder / "whole", progress=False)
    return folder


def test_a_run_made_longer_is_the_run_that_was_longer_from_the_start(made, tmp_path):
    config = begins(steps(tiny(), 12), made / "short", "training")
    result = run_experiment(config, tmp_path / "longer", max_depth=4, progress=False)
    for name, value in weights(made / "whole").items():
        assert torch.equal(value, weights(tmp_path / "longer")[name]), name
    assert result["start"]["step"] == 6 and set(result["start"]["sha256"]) == {"model.safetensors", "training.safetensors"}


def test_it_resumes_to_the_bit_and_needs_its_origin_no_more(made, tmp_path):
    shutil.copytree(made / "short", tmp_path / "short")
    config = begins(steps(tiny(), 12), tmp_path / "short", "training")
    trainer = Trainer(config, tmp_path / "longer")
    trainer.resume()
    for _ in range(3):
        trainer.train_step()
        trainer.step += 1
    trainer.save()
    shutil.rmtree(tmp_path / "short")
    train(config, tmp_path / "longer", progress=False)
    assert all(torch.equal(value, weights(tmp_path / "longer")[name]) for name, value in weights(made / "whole").items())
    (newest,) = (tmp_path / "longer" / "checkpoints").iterdir()
    assert read_json(newest / "state.json")["start"]["step"] == 6


def test_a_warm_start_takes_the_weights_alone(made, tmp_path):
    config = begins(steps(tiny(seed=3), 6), made / "short" / "checkpoints" / "step_00000006")
    trainer = Trainer(config, tmp_path / "warm")
    trainer.resume()
    began = load_model(made / "short").state_dict()
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in began.items())
    assert trainer.step == 0 and not trainer.optimizer.state and not any(c.tensors for c in trainer.carries)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c, made: begins(c, "runs/nowhere"), "StartConfig.run: there is no folder runs/nowhere"),
        (lambda c, made: begins(replace(c, model=replace(c.model, d_ff=40)), made / "short"), "of another model .*d_ff"),
        (lambda c, made: begins(replace(c, seed=2), made / "short", "training"), "StartConfig.keep: 'training' .* but: .*seed"),
        (lambda c, made: begins(steps(c, 6), made / "short", "training"), "TrainingConfig.steps must be more than the 6"),
    ],
)
def test_what_a_run_cannot_begin_at_is_one_error_and_claims_no_folder(made, tmp_path, change, said):
    with pytest.raises((ConfigError, FileNotFoundError), match=said):
        train(change(steps(tiny(), 12), made), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_unfinished_run_is_no_origin_but_its_checkpoint_is(made, tmp_path):
    trainer = Trainer(steps(tiny(), 12), tmp_path / "run")
    trainer.save()
    with pytest.raises(ConfigError, match="at step 0 of 12: finish it, or give the folder of one"):
        train(begins(steps(tiny(seed=1), 6), tmp_path / "run"), tmp_path / "next", progress=False)
    Trainer(begins(steps(tiny(), 6), tmp_path / "run" / "checkpoints" / "step_00000000"), tmp_path / "next").resume()

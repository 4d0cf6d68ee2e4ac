"""Where a run begins if not with the initial weights of its seed: at a checkpoint of another run (see `config.StartConfig`).

The checkpoint is that of a finished run, or one that the config names, so that the same run begins with the same numbers whenever
it is made again. Its place, step and checksums are recorded in the run's own checkpoints and in its result.json.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from looped_lib.config import ExperimentConfig, ModelConfig, differences, from_dict
from looped_lib.core.checks import ConfigError
from looped_lib.core.project import CHECKPOINTS, runs_folder
from looped_lib.training import checkpoints
from looped_lib.training.checkpoints import NAME, STATE, Checkpoint

LONGER = "steps lr lr_end warmup_steps log_every checkpoint_every".split()
"""Fields of TrainingConfig in which a run may differ from the one that it makes longer."""


def find(config: ExperimentConfig) -> Checkpoint | None:
    """The checkpoint that `config` begins at; None for the initial weights.

    ConfigError, or FileNotFoundError, if it is not there, not of a finished run, not of this model, or not one to be made longer.
    """
    if not config.start.run:
        return None
    path = next((p for p in (Path(config.start.run), runs_folder().parent / config.start.run) if p.is_dir()), None)
    if path is None:
        raise FileNotFoundError(f"StartConfig.run: there is no folder {config.start.run}, neither here nor in the project")
    found = checkpoints.read(path) if path.name.startswith(NAME) else checkpoints.latest(path / CHECKPOINTS)
    if found is None:
        raise FileNotFoundError(f"StartConfig.run: {path} has no checkpoint (records keep none): give a run that has one")
    theirs = from_dict(ExperimentConfig, found.state.get("config"), str(found.path / STATE))
    if not path.name.startswith(NAME) and found.step < theirs.training.steps:
        raise ConfigError(
            f"StartConfig.run: {path} is at step {found.step} of {theirs.training.steps}: finish it, or give the folder "
            "of one of its checkpoints"
        )
    both = (replace(m, dropout=0.0) if isinstance(m, ModelConfig) else m for m in (theirs.model, config.model))
    if changed := differences(*both):
        raise ConfigError(f"StartConfig.run: {path} is of another model ({changed})")
    if config.start.keep == "training":
        _check_longer(path, found, theirs, config)
    return found


def describe(found: Checkpoint) -> dict[str, Any]:
    """What is recorded of the checkpoint that a run began at."""
    return {"checkpoint": str(found.path), "step": found.step, "sha256": found.state["sha256"]}


def _check_longer(path: Path, found: Checkpoint, theirs: ExperimentConfig, config: ExperimentConfig) -> None:
    same = {name: getattr(theirs.training, name) for name in LONGER}
    if changed := differences(replace(theirs, start=config.start), replace(config, training=replace(config.training, **same))):
        raise ConfigError(
            f"StartConfig.keep: 'training' makes the run {path} longer, which may differ in {', '.join(LONGER)} alone, but: "
            f"{changed}; with 'weights' it may differ in all but the model"
        )
    if found.step >= config.training.steps:
        raise ConfigError(
            f"TrainingConfig.steps must be more than the {found.step} that {path} has taken, got {config.training.steps}"
        )

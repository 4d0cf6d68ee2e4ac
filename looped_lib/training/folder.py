"""The folder of a run as its training sees it: whose it is, and where it goes on.

Nothing that the folder says is taken on trust: another experiment's config, another run's checkpoint and a finished run whose
weights are gone are refused, each with one error that says what would be right.
"""

from pathlib import Path

from looped_lib.config import ExperimentConfig, differences, from_dict, to_dict
from looped_lib.core.checks import ConfigError
from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import CHECKPOINTS, CONFIG, RESULT
from looped_lib.training import checkpoints
from looped_lib.training.checkpoints import STATE, Checkpoint, CheckpointError, remedy


def check(run_dir: Path, config: ExperimentConfig) -> None:
    """Whether `config` may be trained in `run_dir`; nothing is written.

    ConfigError if the folder is of another experiment, FileNotFoundError if its run is finished and has no checkpoint to go on
    from: what it recorded would be lost.
    """
    path = run_dir / CONFIG
    if path.exists() and (changed := differences(from_dict(ExperimentConfig, read_json(path), str(path)), config)):
        raise ConfigError(f"{path} belongs to another experiment ({changed}): give another folder, or delete {run_dir}")
    if (run_dir / RESULT).exists() and checkpoints.latest(run_dir / CHECKPOINTS) is None:
        raise FileNotFoundError(without_weights(run_dir))


def config_in(path: Path) -> ExperimentConfig:
    """The config that a config.json is, or that a result.json holds. OSError or ConfigError names the file."""
    values = read_json(path)
    return from_dict(ExperimentConfig, values["config"] if isinstance(values, dict) and "config" in values else values, str(path))


def claim(run_dir: Path, config: ExperimentConfig) -> None:
    """`check`, and make the folder this config's if it is nobody's yet."""
    check(run_dir, config)
    if not (run_dir / CONFIG).exists():
        write_json(run_dir / CONFIG, to_dict(config))


def newest(run_dir: Path) -> tuple[Checkpoint, ExperimentConfig] | None:
    """The newest checkpoint of a run and the run's config; None if there is no checkpoint.

    CheckpointError if it is damaged, past the run's last step, or of a run with another config.
    """
    found = checkpoints.latest(run_dir / CHECKPOINTS)
    if found is None:
        return None
    file = found.path / STATE
    try:
        config = from_dict(ExperimentConfig, found.state.get("config"), str(file))
    except ConfigError as e:
        raise CheckpointError(f"{e}; {remedy(found.path)}") from None
    path = run_dir / CONFIG
    if path.exists() and (changed := differences(config, from_dict(ExperimentConfig, read_json(path), str(path)))):
        raise CheckpointError(f"{file}: config must be that of {path}, but differs: {changed}; {remedy(found.path)}")
    if found.step > config.training.steps:
        raise CheckpointError(f"{file}: step must be at most {config.training.steps}, got {found.step}; {remedy(found.path)}")
    for name in ("world_size", "threads"):
        value = found.state.get(name, 1)  # threads are younger than some checkpoints
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{file}: {name} must be a whole number of at least 1, got {value!r}; {remedy(found.path)}")
    return found, config


def without_weights(run_dir: Path) -> str:
    """What to tell of a finished run that has no checkpoint."""
    return (
        f"{run_dir} is finished, but its checkpoint is not there (records keep none): to have its model again, train "
        f"with the config in its {RESULT} in another folder"
    )

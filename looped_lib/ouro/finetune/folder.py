"""The folder of a fine-tuning run: the names in it, and whose it is."""

from pathlib import Path
from typing import Any

from looped_lib.config import to_dict
from looped_lib.core.checks import ConfigError
from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import FINETUNE
from looped_lib.ouro.finetune.config import FinetuneConfig

CONFIG, RESULT, METRICS, MODEL = FINETUNE, "result.json", "metrics.jsonl", "model"
STOP = "stop"  # a file of this name ends the run after its next update, with a checkpoint


def write_config(config: FinetuneConfig, run_dir: Path) -> None:
    """Write the config of a run into its folder. ConfigError, naming the fields, if another one is there."""
    path, mine = run_dir / CONFIG, to_dict(config)
    if path.exists() and (other := sorted(_differing(read_json(path), mine))):
        raise ConfigError(f"{path} is of a run with other settings ({', '.join(other)}): choose another folder, or delete it")
    write_json(path, mine)


def differing(a: FinetuneConfig, b: FinetuneConfig) -> list[str]:
    """The fields, by their path, in which two configs differ."""
    return sorted(_differing(to_dict(a), to_dict(b)))


def _differing(a: Any, b: Any, name: str = "") -> list[str]:
    """The fields, by their path, in which two nested tables differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [x for key in {*a, *b} for x in _differing(a.get(key), b.get(key), f"{name}.{key}" if name else key)]
    return [] if (list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b) else [name]

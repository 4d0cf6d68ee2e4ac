"""The folder of a fine-tuning run: the names in it, and whose it is."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from looped_lib.config import from_dict, to_dict
from looped_lib.core.checks import ConfigError
from looped_lib.core.files import holding, read_json, write_json
from looped_lib.core.project import FINETUNE
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.training.processes import Processes

CONFIG, RESULT, METRICS, MODEL, DATA = FINETUNE, "result.json", "metrics.jsonl", "model", "data.json"
STOP = "stop"  # a file of this name ends the run after its next update, with a checkpoint


def check_config(config: FinetuneConfig, run_dir: Path) -> None:
    """ConfigError, naming the fields, if the folder is of a run with other settings. Fields it was written without count as
    their defaults."""
    path = run_dir / CONFIG
    if not path.exists():
        return
    theirs = to_dict(from_dict(FinetuneConfig, read_json(path), str(path)))
    if differing := sorted(_differing(theirs, to_dict(config))):
        raise ConfigError(f"{path} is of a run with other settings ({', '.join(differing)}): choose another folder, or delete it")


@contextmanager
def claimed(config: FinetuneConfig, run_dir: Path, processes: Processes) -> Iterator[None]:
    """The run's folder for this job alone while the block runs, with the job's config in it; all its processes must call.

    ConfigError on another run's folder, Busy if another job is at work in it. A finished run is only read.
    """
    if not processes.first:
        processes.wait()
        yield
        return
    check_config(config, run_dir)
    with nullcontext() if (run_dir / RESULT).exists() else holding(run_dir):
        if not (run_dir / RESULT).exists():
            check_config(config, run_dir)
            write_json(run_dir / CONFIG, to_dict(config))
            (run_dir / STOP).unlink(missing_ok=True)
        processes.wait()
        yield


def differing(a: FinetuneConfig, b: FinetuneConfig) -> list[str]:
    """The fields, by their path, in which two configs differ."""
    return sorted(_differing(to_dict(a), to_dict(b)))


def _differing(a: Any, b: Any, name: str = "") -> list[str]:
    """The fields, by their path, in which two nested tables differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [x for key in {*a, *b} for x in _differing(a.get(key), b.get(key), f"{name}.{key}" if name else key)]
    return [] if (list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b) else [name]

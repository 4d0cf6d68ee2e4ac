"""Run folders: `runs/<study>/<run>/` describes itself; `find_runs` reads those that are finished, `load_runs` makes one table.

config.json     the ExperimentConfig
metrics.jsonl   one line per logged training step
result.json     what was measured, with config and provenance (see `experiment`)
checkpoints/    weights (stay on the machine)

A record of a run (see `record`) is metrics.jsonl and result.json.
"""

import math
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from looped_lib.config import ConfigError, ExperimentConfig, from_dict
from looped_lib.core.files import read_json
from looped_lib.core.project import CONFIG, DIGITS, METRICS, RESULT, checkout, runs_folder
from looped_lib.runs.results import DAMAGED, Result, find_results, kind_of, leaving_out
from looped_lib.samplers import TRAINED_DEPTH
from looped_lib.training.metrics import read_metrics

PER_DEPTH = ("accuracy", "state_norm", "residual")


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run of an experiment: what was measured of it, by loop count."""

    folder: Path
    config: ExperimentConfig
    result: Result
    """All of its result.json."""

    @cached_property
    def accuracy(self) -> dict[int, float]:
        """Exact match, 0 to 1."""
        return self._by_depth("accuracy")

    @cached_property
    def state_norm(self) -> dict[int, float]:
        """Mean norm of a token's state; infinite where it overflowed."""
        return {depth: math.inf if norm is None else norm for depth, norm in self._by_depth("state_norm").items()}

    @cached_property
    def residual(self) -> dict[int, float | None]:
        """Relative change of the state in the last loop; None where there is none."""
        return self._by_depth("residual")

    @cached_property
    def lenient(self) -> dict[int, float]:
        """The accuracy as the public code grades, where that was recorded (see `experiment`)."""
        return self._by_depth("lenient") if "lenient" in self.result else {}

    @cached_property
    def digits(self) -> dict[int, dict[int, float]]:
        """By digits of the operands, where that was measured (`runs.digits`), the accuracy by loop count."""
        path = self.folder / DIGITS
        found = self.result.get("digits") or (read_json(path) if path.exists() else {"accuracy": {}})
        return {int(d): dict(zip(found["depths"], values, strict=True)) for d, values in found["accuracy"].items()}

    def table(self) -> pd.DataFrame:
        """depth and PER_DEPTH, a row per recorded depth."""
        return pd.DataFrame({"depth": self.result["depths"], **{name: self.result[name] for name in PER_DEPTH}})

    @property
    def seconds(self) -> float:
        """Of its training and measurement."""
        return sum(self.result["seconds"].values())

    def lowest(self, first: int = TRAINED_DEPTH, last: int = 100) -> float:
        """The lowest accuracy at a recorded depth from `first` to `last`; at any depth, if the run was measured to `last`."""
        found = self.result.get("lowest")
        if found and found["from"] == first and max(self.accuracy) == last:
            return found["accuracy"]
        return min(_between(self.accuracy, first, last))

    def lowest_lenient(self, first: int = TRAINED_DEPTH, last: int = 100) -> float:
        """The lowest accuracy as the public code grades, at a recorded depth from `first` to `last`."""
        return min(_between(self.lenient, first, last))

    def mean(self, first: int = TRAINED_DEPTH, last: float = 100) -> float:
        """The mean accuracy over the recorded depths from `first` to `last`."""
        values = _between(self.accuracy, first, last)
        return sum(values) / len(values)

    def metrics(self) -> pd.DataFrame:
        """Its training curve, a row per logged step; empty where that was not kept."""
        path = self.folder / METRICS
        return pd.DataFrame(read_metrics(path) if path.exists() else [])

    def _by_depth(self, column: str) -> dict[int, Any]:
        return dict(zip(self.result["depths"], self.result[column], strict=True))


def read_run(folder: Path) -> Run:
    """The finished run in a folder. OSError or ValueError names the file if it is not there or not whole."""
    path = folder / RESULT
    return run_of(path, read_json(path, f"delete {path} to measure again"))


def run_of(path: Path, result: Result) -> Run:
    """The run whose result.json, at `path`, says `result`; ValueError if it does not hold what a run's does."""
    try:
        _check_columns(result)
        return Run(path.parent, from_dict(ExperimentConfig, result["config"], str(path)), result)
    except ConfigError:
        raise
    except DAMAGED as e:
        why = f"{type(e).__name__}: {e}"
        raise ValueError(f"{path} has no depths, accuracy and config ({why}); delete it to measure again") from None


def find_runs(root: str | Path | None = None) -> Iterator[Run]:
    """The finished runs under `root` (default: runs/ of the project), by path. A damaged one is a warning that names it."""
    root = (runs_folder() if root is None else Path(root)).resolve()
    for path, result in find_results(root, "experiment"):
        with leaving_out(path):
            yield run_of(path, result)


def read_config(run_dir: str | Path) -> ExperimentConfig:
    """The config of the run in `run_dir`. FileNotFoundError or ConfigError names the file if it is not there or not whole."""
    path = Path(run_dir) / CONFIG
    values = _config(Path(run_dir))
    if values is None:
        raise FileNotFoundError(f"{path} is missing: {run_dir} is not the folder of a run (runs/<study>/<run>)")
    return from_dict(ExperimentConfig, values, str(path))


def portable(config: ExperimentConfig) -> ExperimentConfig:
    """The config with its data files by name alone: on another machine they lie elsewhere."""
    return replace(config, data=config.data.portable())


def provenance() -> dict[str, Any]:
    """What a result depends on beside its config: commit (and whether files were changed), versions, device."""
    cuda = torch.cuda.is_available()
    return {
        **_version_control(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("looped_lib", "torch", "numpy", "transformers")},
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
    }


def load_runs(root: str | Path | None = None) -> pd.DataFrame:
    """All finished runs under `root` (default: runs/ of the project), one row per run and depth.

    Columns: study, run, depth, accuracy, state_norm, residual, seconds, and the config flattened (`model.norm_placement`,
    `loops.kind`, `penalty.weight`, ...). A study inside another, as a sweep makes them, is named by its path under `root`
    (`norms/seed=0`), so (study, run) names one run. A damaged run is left out with a warning that names it.
    """
    root = (runs_folder() if root is None else Path(root)).resolve()
    return _joined(root, ((r.folder, r.table().assign(seconds=r.seconds), flat(r.result["config"])) for r in find_runs(root)))


def load_metrics(root: str | Path | None = None) -> pd.DataFrame:
    """The training curves of all runs under `root`, one row per run and logged step, with study, run and the config."""
    root = (runs_folder() if root is None else Path(root)).resolve()
    tables = []
    for path in sorted(root.rglob(METRICS)):
        with leaving_out(path.parent):
            if (config := _config(path.parent)) is not None:
                tables.append((path.parent, pd.DataFrame(read_metrics(path)), flat(config)))
    return _joined(root, tables)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, `model.norm_placement` for {"model": {"norm_placement": ...}}."""
    out = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = str(value) if isinstance(value, list) else value
    return out


def _config(run_dir: Path) -> Any:
    """The contents of config.json, or the config in result.json, as records have it; None where there is neither."""
    if (path := run_dir / CONFIG).exists():
        return read_json(path)
    path = run_dir / RESULT
    result = read_json(path) if path.exists() else None
    return result["config"] if kind_of(path, result) == "experiment" else None


def _joined(root: Path, tables: Iterable[tuple[Path, pd.DataFrame, dict[str, Any]]]) -> pd.DataFrame:
    """One table of the (folder, table, flat config) of runs, with study and run."""
    named = []
    for folder, table, config in tables:
        study = folder.parent
        table = table.assign(**config)
        table.insert(0, "study", study.relative_to(root).as_posix() if root in study.parents else study.name)
        table.insert(1, "run", folder.name)
        named.append(table)
    return pd.concat(named, ignore_index=True) if named else pd.DataFrame()


def _check_columns(result: Any) -> None:
    """ValueError, or another of DAMAGED, unless a result has a number for each depth, and seconds."""
    for name in ("depths", *PER_DEPTH):
        kinds = (int,) if name == "depths" else (int, float, type(None))
        values = result[name]
        if not isinstance(values, list) or len(values) != len(result["depths"]) or not all(type(v) in kinds for v in values):
            raise ValueError(f"{name} must be a list of numbers, one for each depth")
    if sorted(set(result["depths"])) != result["depths"]:
        raise ValueError("depths must rise")
    sum(result["seconds"].values())


def _between(values: Mapping[int, float], first: int, last: float) -> list[float]:
    return [value for depth, value in values.items() if first <= depth <= last]


def _version_control() -> dict[str, Any]:
    """Commit of the checkout that this library runs from, and whether files were changed; None without a checkout or git."""
    top = checkout()
    if top is None or Path(_git("rev-parse", "--show-toplevel") or "/") != top.resolve():  # in another project's repository, say
        return {"commit": None, "changed_files": None}
    return {"commit": _git("rev-parse", "HEAD"), "changed_files": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", Path(__file__).resolve().parent, *args], capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return getattr(sys.modules.get(name), "__version__", None)

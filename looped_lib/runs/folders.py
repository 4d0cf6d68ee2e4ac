"""Run folders: `runs/<study>/<run>/` describes itself, and `load_runs()` reads all of them into one table.

config.json     the ExperimentConfig
metrics.jsonl   one line per logged training step
result.json     what was measured, with config and provenance (see `experiment`)
checkpoints/    weights (stay on the machine)
"""

import platform
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from looped_lib.config import ExperimentConfig, from_dict
from looped_lib.core.files import read_json
from looped_lib.core.project import checkout, runs_folder
from looped_lib.training.metrics import read_metrics

PER_DEPTH = ("accuracy", "state_norm", "residual")
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)  # what files of another shape raise


def read_config(run_dir: str | Path) -> ExperimentConfig:
    """The config of the run in `run_dir`. FileNotFoundError or ConfigError name the file if it is not there or not whole."""
    path = Path(run_dir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {run_dir} is not the folder of a run (runs/<study>/<run>)")
    return from_dict(ExperimentConfig, read_json(path), str(path))


def portable(config: ExperimentConfig) -> ExperimentConfig:
    """The config with its data files by name alone: on another machine they lie elsewhere."""
    train, test = Path(config.data.train_file).name, Path(config.data.test_file).name
    return replace(config, data=replace(config.data, train_file=train, test_file=test))


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

    Columns: study, run, depth, accuracy, state_norm, residual, lenient (as the public code grades; missing in older runs),
    seconds, and the config flattened (`model.norm_placement`, `loops.kind`, `penalty.weight`, ...). A study inside another, as a
    sweep makes them, is named by its path under `root` (`norms/seed=0`), so (study, run) names one run. A folder with a damaged
    result is left out with a warning that names it.
    """
    return _collect(root, "result.json", _per_depth)


def load_metrics(root: str | Path | None = None) -> pd.DataFrame:
    """The training curves of all runs under `root`, one row per run and logged step, with study, run and the config."""
    return _collect(root, "metrics.jsonl", _per_step)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, `model.norm_placement` for {"model": {"norm_placement": ...}}."""
    out = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = str(value) if isinstance(value, list) else value
    return out


def _collect(root: str | Path | None, name: str, read: Any) -> pd.DataFrame:
    root = (runs_folder() if root is None else Path(root)).resolve()
    tables = []
    for path in sorted(root.rglob(name)):
        if not (path.parent / "config.json").exists():
            continue  # the result of a whole notebook, not of a run
        try:
            table, config = read(path)
            table = table.assign(**flat(config))
        except _DAMAGED as e:
            warnings.warn(f"left out {path.parent}: {type(e).__name__}: {e}", stacklevel=3)
            continue
        study = path.parent.parent
        table.insert(0, "study", study.relative_to(root).as_posix() if root in study.parents else study.name)
        table.insert(1, "run", path.parent.name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _per_depth(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    result = read_json(path)
    columns = {"depth": result["depths"], **{name: result[name] for name in PER_DEPTH}}
    for name, values in columns.items():
        kinds = (int,) if name == "depth" else (int, float, type(None))
        if not isinstance(values, list) or not all(type(value) in kinds for value in values):
            raise ValueError(f"{name} must be a list of numbers, one for each depth")
    table = pd.DataFrame(columns)
    return table.assign(seconds=sum(result["seconds"].values())), result["config"]


def _per_step(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    return pd.DataFrame(read_metrics(path)), read_json(path.parent / "config.json")


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

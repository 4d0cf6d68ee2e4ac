"""What the run folders hold: every finished run, found by its config and nothing else.

A claim asks for the runs of an experiment (`of`), and gets those of all seeds, wherever under runs/ they lie and whatever their
folders are called. Of two runs of one config and seed the one that was measured deeper counts; of two such the one that was made
here, not the recorded one. What cannot be read is left out, with a warning.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from looped_lib.config import ExperimentConfig, TrainingConfig, from_dict
from looped_lib.core.files import read_json
from looped_lib.core.project import RECORDED, runs_folder
from looped_lib.ouro.evaluate.cells import headlines
from looped_lib.ouro.evaluate.paper import TASKS
from looped_lib.runs.digits import NAME as DIGITS
from looped_lib.runs.folders import portable
from looped_lib.training.metrics import read_metrics

_Result = tuple[Path, dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """One finished run of an addition experiment; values by loop count."""

    folder: str
    config: ExperimentConfig
    accuracy: dict[int, float]
    state_norm: dict[int, float]
    residual: dict[int, float]
    seconds: float
    lowest: dict[str, float] = field(default_factory=dict)
    lenient: dict[int, float] = field(default_factory=dict)
    """The accuracy as the public code grades, where that was recorded (see `runs.experiment`)."""
    digits: dict[int, dict[int, float]] = field(default_factory=dict)
    """By digits of the operands, where that was measured (`looped_lib.runs.digits`), the accuracy by loop count."""

    def held(self, first: int = 4, last: int = 100) -> float:
        """The lowest accuracy at a recorded depth from `first` to `last`; at any depth, if the run was measured to `last`."""
        if self.lowest and self.lowest["from"] == first and max(self.accuracy) == last:
            return self.lowest["accuracy"]
        return min(a for depth, a in self.accuracy.items() if first <= depth <= last)

    def held_leniently(self, first: int = 4, last: int = 100) -> float:
        """The lowest accuracy as the public code grades, at a recorded depth from `first` to `last`."""
        return min(a for depth, a in self.lenient.items() if first <= depth <= last)

    def mean(self, first: int = 4, last: int = 100) -> float:
        """The mean accuracy over the recorded depths from `first` to `last`."""
        values = [a for depth, a in self.accuracy.items() if first <= depth <= last]
        return sum(values) / len(values)


@dataclass(frozen=True)
class Tuned:
    """One fine-tuned small Ouro: accuracy by loop count."""

    folder: str
    accuracy: dict[int, float]

    def drop(self, depth: int) -> float:
        """How far the accuracy at `depth` is below the greatest at any depth."""
        return max(self.accuracy.values()) - self.accuracy[depth]


class Evidence:
    """All finished runs under `root` (default: runs/ of the project)."""

    def __init__(self, root: str | Path | None = None):
        self.root = (runs_folder() if root is None else Path(root)).resolve()
        self._runs: dict[ExperimentConfig, dict[int, Run]] = {}
        self._results = list(_results(self.root))
        self._made = {self._name(path.parent): result.get("provenance") for path, result in self._results}
        found = list(_experiments(self._results, self.root))
        for run in sorted(found, key=lambda run: (-max(run.accuracy), RECORDED in Path(run.folder).parts)):
            self._runs.setdefault(_seedless(run.config), {}).setdefault(run.config.seed, run)
        self._tuned: dict[tuple[str, str], dict[int, Tuned]] = {}
        for size, mode, seed, tuned in _finetunings(self._results, self.root):
            self._tuned.setdefault((size, mode), {}).setdefault(seed, tuned)

    def of(self, config: ExperimentConfig, deepest: int = 0) -> dict[int, Run]:
        """{seed: run} of the experiment, its seed aside, of the runs that were measured at least to `deepest`."""
        runs = self._runs.get(_seedless(config), {})
        return {seed: run for seed, run in sorted(runs.items()) if max(run.accuracy) >= deepest}

    def made(self, folder: str) -> dict[str, Any] | None:
        """The provenance of the run in `folder`, a path as the runs here have; None if it was not recorded."""
        return self._made.get(folder)

    def tuned(self, size: str, mode: str) -> dict[int, Tuned]:
        """{seed: fine-tuned Ouro} of notebook 05 in a size and mode (base, sft, random, jsrr, stars)."""
        return dict(sorted(self._tuned.get((size, mode), {}).items()))

    def benchmarks(self) -> pd.DataFrame:
        """Headline metrics of Ouro-1.4B on whole benchmarks: model, task, depth, value, folder.

        From notebook 06 in size paper without a limit on the problems; of two measurements of a cell the one that was made here.
        """
        columns = ["model", "task", "depth", "value", "folder"]
        tables = [pd.DataFrame(columns=columns)]
        for path, result in self._results:
            if result.get("preset") != "paper" or "table" not in result or result.get("config", {}).get("limit"):
                continue
            try:
                table = headlines(pd.DataFrame(result["table"]))
                table = table.assign(folder=self._name(path.parent))[columns]
            except (ValueError, TypeError, KeyError) as e:
                warnings.warn(f"left out {path}: {e!r}", stacklevel=2)
                continue
            tables.append(table[table["task"].isin(TASKS)])
        return pd.concat(tables, ignore_index=True).drop_duplicates(["model", "task", "depth"]).astype({"value": float})

    def curves(self, groups: dict[str, ExperimentConfig], deepest: int = 100) -> pd.DataFrame:
        """group, seed, depth, accuracy, state_norm, residual: a row per run and recorded depth, of the groups that have runs."""
        columns = ["group", "seed", "depth", "accuracy", "state_norm", "residual"]
        rows = [
            [name, seed, depth, a, run.state_norm[depth], run.residual.get(depth)]
            for name, config in groups.items()
            for seed, run in self.of(config).items()
            for depth, a in run.accuracy.items()
            if depth <= deepest
        ]
        return pd.DataFrame(rows, columns=columns).astype({"state_norm": float, "residual": float})

    def losses(self, groups: dict[str, ExperimentConfig]) -> pd.DataFrame:
        """group, seed, step, ce: the training curves of the same runs, where they were kept."""
        rows = [
            [name, seed, line["step"], line["ce"]]
            for name, config in groups.items()
            for seed, run in self.of(config).items()
            if (log := self.root.parent / run.folder / "metrics.jsonl").exists()
            for line in read_metrics(log)
        ]
        return pd.DataFrame(rows, columns=["group", "seed", "step", "ce"])

    def tuned_curves(self, size: str, modes: Sequence[str]) -> pd.DataFrame:
        """group, seed, depth, accuracy of the fine-tuned small Ouros."""
        rows = [
            [mode, seed, depth, accuracy]
            for mode in modes
            for seed, run in self.tuned(size, mode).items()
            for depth, accuracy in run.accuracy.items()
        ]
        return pd.DataFrame(rows, columns=["group", "seed", "depth", "accuracy"])

    def dynamics(self, size: str) -> dict[str, Any] | None:
        """The result of notebook 04 in a size (what one loop does along a trajectory, and more); None if not run."""
        found = (result for _, result in self._results if {"gains", "loops", "runs"} <= set(result))
        return next((result for result in found if result.get("preset") == size), None)

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self.root.parent).as_posix()

    def __len__(self) -> int:
        return sum(map(len, self._runs.values()))


def _seedless(config: ExperimentConfig) -> ExperimentConfig:
    """What an experiment is: not its seed, nor how its products are computed, nor how often it writes."""
    usual = {name: getattr(TrainingConfig, name) for name in ("precision", "compile", "log_every", "checkpoint_every")}
    return replace(portable(config), seed=0, training=replace(config.training, **usual))


def _results(root: Path) -> Iterator[_Result]:
    """Every result.json, what was made here first."""
    paths = sorted(root.rglob("result.json"), key=lambda p: (RECORDED in p.relative_to(root).parts, p))
    for path in paths:
        try:
            result = read_json(path)
        except (OSError, ValueError) as e:
            warnings.warn(f"left out {path}: {e}", stacklevel=3)
            continue
        if isinstance(result, dict):
            yield path, result


def _experiments(results: list[_Result], root: Path) -> Iterator[Run]:
    for path, result in results:
        if not {"depths", "accuracy", "state_norm", "residual", "config", "seconds"} <= set(result):
            continue  # of a notebook, or of another kind of run
        try:
            config = from_dict(ExperimentConfig, result["config"], str(path))
            accuracy, norm, residual = (
                dict(zip(result["depths"], result[column], strict=True)) for column in ("accuracy", "state_norm", "residual")
            )
            norm = {depth: math.inf if value is None else value for depth, value in norm.items()}  # it overflowed
            folder = path.parent.relative_to(root.parent).as_posix()
            seconds = sum(result["seconds"].values())
            digits = _digits(path.with_name(DIGITS))
            lenient = dict(zip(result["depths"], result["lenient"], strict=True)) if "lenient" in result else {}
            yield Run(folder, config, accuracy, norm, residual, seconds, result.get("lowest", {}), lenient, digits)
        except (ValueError, TypeError, AttributeError, KeyError) as e:
            warnings.warn(f"left out {path}: {e!r}", stacklevel=2)


def _digits(path: Path) -> dict[int, dict[int, float]]:
    if not path.exists():
        return {}
    found = read_json(path)
    return {int(d): dict(zip(found["depths"], values, strict=True)) for d, values in found["accuracy"].items()}


def _finetunings(results: list[_Result], root: Path) -> Iterator[tuple[str, str, int, Tuned]]:
    """Size, mode, seed and accuracies of the fine-tuned small Ouros."""
    for path, result in results:
        if not {"depths", "accuracy", "problems", "preset", "seed"} <= set(result):
            continue
        try:
            for name, values in result["accuracy"].items():
                folder = f"{path.parent.relative_to(root.parent).as_posix()}/{name}"
                tuned = Tuned(folder, dict(zip(result["depths"], values, strict=True)))
                yield result["preset"], name.rpartition("-seed")[0], result["seed"], tuned
        except (ValueError, TypeError, AttributeError) as e:
            warnings.warn(f"left out {path}: {e!r}", stacklevel=2)

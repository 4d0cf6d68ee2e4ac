"""What the run folders hold: every finished run, found by its config and nothing else.

A claim asks for the runs of an experiment (`of`), and gets those of all seeds, wherever under runs/ they lie and whatever their
folders are called. Of two runs of one config and seed the one that was measured deeper counts; of two such the one that was made
here, not the recorded one. What cannot be read is left out, with a warning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from looped_lib.config import ExperimentConfig, TrainingConfig
from looped_lib.core.project import RECORDED, runs_folder
from looped_lib.ouro.evaluate.paper import TASKS
from looped_lib.ouro.evaluate.tables import headlines
from looped_lib.runs.folders import Run, portable, run_of
from looped_lib.runs.results import Result, find_results, kind_of, leaving_out


@dataclass(frozen=True)
class Tuned:
    """One fine-tuned small Ouro: accuracy by loop count."""

    folder: Path
    accuracy: dict[int, float]


class Evidence:
    """All finished runs under `root` (default: runs/ of the project)."""

    def __init__(self, root: str | Path | None = None):
        self.root = (runs_folder() if root is None else Path(root)).resolve()
        # What was made here comes first.
        self._results = sorted(find_results(self.root), key=lambda found: RECORDED in found[0].relative_to(self.root).parts)
        self._made = {path.parent: result.get("provenance") for path, result in self._results}
        self._runs: dict[ExperimentConfig, dict[int, Run]] = {}
        for run in sorted(self._experiments(), key=lambda run: -max(run.accuracy)):
            self._runs.setdefault(_seedless(run.config), {}).setdefault(run.config.seed, run)
        self._tuned: dict[tuple[str, str], dict[int, Tuned]] = {}
        for size, mode, seed, tuned in self._finetunings():
            self._tuned.setdefault((size, mode), {}).setdefault(seed, tuned)

    def of(self, config: ExperimentConfig, deepest: int = 0) -> dict[int, Run]:
        """{seed: run} of the experiment, its seed aside, of the runs that were measured at least to `deepest`."""
        runs = self._runs.get(_seedless(config), {})
        return {seed: run for seed, run in sorted(runs.items()) if max(run.accuracy) >= deepest}

    def made(self, folder: Path) -> dict[str, Any] | None:
        """The provenance of the run in `folder`; None if it was not recorded."""
        return self._made.get(folder)

    def name(self, folder: Path) -> str:
        """The folder of a run as it is shown: its path from the folder that holds runs/."""
        return folder.relative_to(self.root.parent).as_posix()

    def tuned(self, size: str, mode: str) -> dict[int, Tuned]:
        """{seed: fine-tuned Ouro} of notebook 05 in a size and mode (base, sft, random, jsrr, stars)."""
        return dict(sorted(self._tuned.get((size, mode), {}).items()))

    def benchmarks(self) -> pd.DataFrame:
        """Headline metrics of Ouro-1.4B on whole benchmarks: model, task, depth, value, folder.

        From notebook 06 in size paper without a limit on the problems; of two measurements of a cell the one that was made here.
        """
        columns = ["model", "task", "depth", "value", "folder"]
        tables = [pd.DataFrame(columns=columns)]
        for path, result in self._of_kind("evaluation"):
            with leaving_out(path):
                if result["preset"] == "paper" and not result["config"].get("limit"):
                    table = headlines(pd.DataFrame(result["table"])).assign(folder=path.parent)[columns]
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
        columns = ["group", "seed", "step", "ce"]
        tables = [
            run.metrics().assign(group=name, seed=seed).reindex(columns=columns)
            for name, config in groups.items()
            for seed, run in self.of(config).items()
        ]
        return pd.concat([pd.DataFrame(columns=columns), *tables], ignore_index=True)

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
        return next((result for _, result in self._of_kind("dynamics") if result.get("preset") == size), None)

    def __len__(self) -> int:
        return sum(map(len, self._runs.values()))

    def _of_kind(self, kind: str) -> Iterator[tuple[Path, Result]]:
        return ((path, result) for path, result in self._results if kind_of(path, result) == kind)

    def _experiments(self) -> Iterator[Run]:
        for path, result in self._of_kind("experiment"):
            with leaving_out(path):
                yield run_of(path, result)

    def _finetunings(self) -> Iterator[tuple[str, str, int, Tuned]]:
        """Size, mode, seed and accuracies of the fine-tuned small Ouros."""
        for path, result in self._of_kind("finetunings"):
            with leaving_out(path):
                for name, values in result["accuracy"].items():
                    tuned = Tuned(path.parent / name, dict(zip(result["depths"], values, strict=True)))
                    yield result["preset"], result["modes"][name], result["seed"], tuned


def _seedless(config: ExperimentConfig) -> ExperimentConfig:
    """What an experiment is: not its seed, nor how its products are computed, nor how often it writes."""
    usual = {name: getattr(TrainingConfig, name) for name in ("precision", "compile", "log_every", "checkpoint_every")}
    return replace(portable(config), seed=0, training=replace(config.training, **usual))

"""Runs side by side: what differs between them, their curves over loops, and tests of the difference over seeds.

    compare("runs/norms")                                        all finished runs of a study
    compare(["runs/tour/fixed", "runs/mine/poisson"])            these runs
    compare("runs/norms", against="pre_norm-LayerNorm").test     the others against this group

Runs that differ in seed only are one group. Every other group is compared with one (the first, unless `against` names it) at
a few depths, and in the mean over the depths from the trained one on that all runs recorded (few of them are deep ones):

    mean over seeds of (accuracy - accuracy of the other group), its 95 % interval, p, and p by Holm over all rows

`seeds` says which test that is: the paired t-test where seeds are shared.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from pandas.io.formats.style import Styler

from looped_lib.config import ExperimentConfig, to_dict
from looped_lib.core.project import runs_folder
from looped_lib.plots.bands import accuracy_bands, loss_bands
from looped_lib.runs.folders import Run, find_runs, flat
from looped_lib.runs.statistics import difference, holm


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` found. As the last line of a cell it shows all of it."""

    parameters: pd.DataFrame
    """One row per group: the parameters in which the groups differ, the number of seeds, and the mean seconds a run took."""
    curves: pd.DataFrame
    """group, seed, depth, accuracy: at the depths, 1 or more, that all runs of a group have."""
    losses: pd.DataFrame
    """The training curves, with group and seed."""
    test: pd.DataFrame
    """One row per group and depth: difference in accuracy (0 to 1), its 95 % interval, p, p by Holm, and the test."""

    @property
    def figure(self) -> go.Figure:
        """Accuracy against loop count, a curve and a band over seeds per group."""
        return accuracy_bands(self.curves)

    @property
    def training(self) -> go.Figure:
        """Cross-entropy against training step, likewise."""
        return loss_bands(self.losses)

    @property
    def tests(self) -> Styler:
        """`test` for people."""
        numbers = {"p": "{:.2g}", "p_holm": "{:.2g}"}
        return self.test.style.hide().format(numbers, precision=3, na_rep="–", escape="html")

    def summary(self) -> dict[str, Any]:
        """Ready for JSON: the common depths, and by group the mean accuracy at each, the seeds, the seconds of a run."""
        means = self.curves.groupby(["depth", "group"], sort=False).accuracy.mean().unstack().sort_index().dropna()
        columns = self.parameters[["seeds", "seconds"]].to_dict()
        return {"depths": [int(d) for d in means.index], "accuracy": means.to_dict("list"), **columns}

    def __repr__(self) -> str:
        shown = self.parameters.round({"seconds": 1}).to_string()
        return f"{shown}\n\n{self.test.to_string(index=False) if len(self.test) else 'one group: no test'}"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.parameters.round({"seconds": 1}))
        self.figure.show()
        if len(self.losses):
            self.training.show()
        if len(self.test):
            display(self.tests)


def compare(
    runs: str | Path | Sequence[str | Path], against: str | None = None, depths: Sequence[int] | None = None
) -> Comparison:
    """Compare finished runs: one folder with runs in it, or several (paths may start at the project's folder).

    `against` is the group that the others are tested against (default: the first), `depths` are the loop counts of the tests
    (default: the trained depth, twice and four times it, and the deepest all runs were measured at). The trained depth is
    the greatest mean loop count among the groups. Seeds are counted once: a run that repeats another's config and seed is
    left out with a warning. FileNotFoundError if there are no finished runs; ValueError if they have no depths in common.
    """
    groups = _named(_grouped([runs] if isinstance(runs, (str, Path)) else runs))
    common = _common([run for members in groups.values() for run in members])
    if not common:
        measured = "; ".join(f"{name} at {_common(members) or 'none'}" for name, members in groups.items())
        raise ValueError(f"the runs were measured at no common depth ({measured}): measure them again, equally deep")
    if depths is not None and (missing := sorted(set(depths) - set(common))):
        raise ValueError(f"not all runs were measured at depth {', '.join(map(str, missing))}, but at all of {common}")
    if against is not None and against not in groups:
        raise ValueError(f"against must be one of the groups {'; '.join(groups)}, got {against!r}")
    curves = pd.concat([_curves(name, members) for name, members in groups.items()], ignore_index=True)
    trained = math.ceil(max(members[0].config.loops.mean() for members in groups.values()) - 1e-9)  # 1e-9: a sum's rounding
    if depths is None:
        depths = sorted({trained, 2 * trained, 4 * trained, common[-1]} & set(common))
    beyond = [depth for depth in common if depth >= trained]
    averages = {str(depth): [depth] for depth in depths} | (
        {f"mean of recorded, {trained} to {common[-1]}": beyond} if beyond else {}
    )
    return Comparison(_parameters(groups), curves, _losses(groups), _tests(curves, against or next(iter(groups)), averages))


def _grouped(given: Sequence[str | Path]) -> list[list[Run]]:
    """Runs by what they have in common, the seed aside; groups and runs in the order found."""
    groups: dict[ExperimentConfig, dict[int, Run]] = {}
    for run in (run for folder in given for run in _found(folder)):
        members = groups.setdefault(replace(run.config, seed=0), {})
        twin = members.setdefault(run.config.seed, run)
        if twin.folder != run.folder:
            warnings.warn(f"left out {run.folder}: config and seed are those of {twin.folder}", stacklevel=3)
    if not groups:
        raise FileNotFoundError(f"compare needs at least one folder with finished runs, got {list(map(str, given))}")
    return [list(members.values()) for members in groups.values()]


def _found(folder: str | Path) -> list[Run]:
    root = next((path for path in (Path(folder), runs_folder().parent / folder) if path.is_dir()), None)
    if root is None:
        raise FileNotFoundError(f"there is no folder {folder}, neither here nor in the project")
    if not (runs := list(find_runs(root))):
        raise FileNotFoundError(f"no finished run in {folder}: a run has result.json once it is measured (runs.experiment)")
    return runs


def _named(groups: list[list[Run]]) -> dict[str, list[Run]]:
    """Groups by their runs' common name without the seed, or by their parameters where names do not tell them apart."""
    names = [{run.folder.name.removesuffix(f"-seed{run.config.seed}") for run in group} for group in groups]
    if all(len(name) == 1 for name in names) and len(set.union(*names)) == len(groups):
        return dict(zip((name.pop() for name in names), groups, strict=True))
    tables = _differing(groups)
    return {", ".join(f"{k}={v}" for k, v in table.items()) or "all": group for table, group in zip(tables, groups, strict=True)}


def _differing(groups: list[list[Run]]) -> list[dict[str, object]]:
    """Of each group the parameters in which the groups differ."""
    tables = [flat(to_dict(replace(group[0].config, seed=0))) for group in groups]
    names = dict.fromkeys(name for table in tables for name in table)
    differing = [name for name in names if len({repr(table.get(name)) for table in tables}) > 1]
    return [{name: table[name] for name in differing if name in table} for table in tables]


def _parameters(groups: dict[str, list[Run]]) -> pd.DataFrame:
    table = pd.DataFrame(_differing(list(groups.values())), index=pd.Index(groups, name="group"), dtype=object).fillna("")
    seconds = [sum(run.seconds for run in group) / len(group) for group in groups.values()]
    return table.assign(seeds=[len(group) for group in groups.values()], seconds=seconds)


def _curves(name: str, runs: list[Run]) -> pd.DataFrame:
    tables = [run.table().assign(group=name, seed=run.config.seed) for run in runs]
    table = pd.concat(tables)[["group", "seed", "depth", "accuracy"]]
    return table[table.depth.isin(_common(runs))]


def _losses(groups: dict[str, list[Run]]) -> pd.DataFrame:
    tables = [run.metrics().assign(group=name, seed=run.config.seed) for name, runs in groups.items() for run in runs]
    return pd.concat(tables, ignore_index=True)


def _common(runs: Sequence[Run]) -> list[int]:
    """The loop counts, 1 or more, at which all runs were measured."""
    return sorted(set.intersection(*({d for d in run.accuracy if d > 0} for run in runs)))


def _tests(curves: pd.DataFrame, against: str, averages: dict[str, list[int]]) -> pd.DataFrame:
    rows = []
    for name in [name for name in curves.group.unique() if name != against]:
        for loops, depths in averages.items():
            mean = curves[curves.depth.isin(depths)].groupby(["group", "seed"]).accuracy.mean()
            found = difference(mean[name].to_dict(), mean[against].to_dict())
            low, high = np.clip([found.low, found.high], -1, 1)
            rows.append([name, against, loops, found.mean, low, high, found.p, found.test])
    table = pd.DataFrame(rows, columns=["group", "against", "loops", "difference", "low", "high", "p", "test"])
    table.insert(7, "p_holm", holm(table["p"].tolist()))
    return table

"""Accuracy on benchmarks by loop count: a panel per task, and what each model loses beyond its own peak."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from looped_lib.core.html import escape
from looped_lib.plots.style import TEMPLATE, figure, lines

_PANELS_IN_A_ROW = 3
_SYMBOLS = {"gate": "diamond", "residual": "square", "kl": "cross", "entropy": "x"}  # by criterion of an exit


def benchmarks(table: pd.DataFrame, exits: pd.DataFrame | None = None) -> go.Figure:
    """Accuracy against loop count, a panel per task, a line per model; bars are one standard error, where there is one.

    `table` has model, task, depth, value (0 to 1) and perhaps stderr, as from `tables.headlines` or `paper.STARS`. `exits`, as
    from `headlines` of `tables.exits`, adds accuracy against mean loops a token, a dotted line for each model and criterion.
    """
    exits = pd.DataFrame(columns=["task", "model", "exit", "loops"]) if exits is None else exits
    panels = _Panels([*table["task"], *exits["task"]], "loops T")
    line = lines({*table["model"], *exits["model"]})
    for (task, model), points in table.groupby(["task", "model"], sort=True):
        panels.draw(task, model, points, "depth", line=line[model], hovertemplate="T = %{x}: %{y:.1f} %")
    for (task, model, by), points in exits.groupby(["task", "model", "exit"], sort=True):
        dotted = {"line": {**line[model], "dash": "dot"}, "marker": {"symbol": _SYMBOLS[by]}}
        panels.draw(task, f"{model}, exit by {by}", points, "loops", **dotted, hovertemplate="%{x:.2f} loops a token: %{y:.1f} %")
    return _loops(panels.finished("Accuracy against loop count"), table)


def over_training(table: pd.DataFrame) -> go.Figure:
    """Accuracy against updates, a panel per task, a line per run and loop count; `table`: `headlines` of `tables.training`."""
    panels = _Panels(table["task"], "updates")
    line = lines(sorted({f"{run}, T = {depth}" for run, depth in zip(table["run"], table["depth"], strict=True)}))
    for (task, run, depth), points in table.groupby(["task", "run", "depth"], sort=True):
        name = f"{run}, T = {depth}"
        panels.draw(task, name, points, "updates", line=line[name], hovertemplate="after %{x} updates: %{y:.1f} %")
    return panels.finished("Accuracy over training")


class _Panels:
    """A panel per task, in which curves of accuracy are drawn; a name has one entry in the legend."""

    def __init__(self, tasks: Iterable[str], x_title: str):
        self.tasks, self.shown, self.bars = list(dict.fromkeys(tasks)), set(), False
        n = len(self.tasks)
        self.n_rows, self.n_columns = max(1, -(-n // _PANELS_IN_A_ROW)), max(1, min(_PANELS_IN_A_ROW, n))
        titles, spacing = list(map(escape, self.tasks)), 0.25 / self.n_rows
        self.plot = make_subplots(self.n_rows, self.n_columns, subplot_titles=titles, vertical_spacing=spacing, x_title=x_title)

    def draw(self, task: str, name: str, points: pd.DataFrame, x: str, **how: Any) -> None:
        """A curve of `points`, which have `x`, value (0 to 1) and perhaps stderr."""
        panel, points, bars = self.tasks.index(task), points.sort_values(x), "stderr" in points
        self.plot.add_scatter(
            x=points[x].tolist(),
            y=(100 * points["value"]).tolist(),
            error_y={"array": (100 * points["stderr"]).tolist() if bars else None, "thickness": 1},
            name=escape(name),
            legendgroup=name,
            showlegend=name not in self.shown,
            mode="lines+markers",
            row=panel // self.n_columns + 1,
            col=panel % self.n_columns + 1,
            **how,
        )
        self.shown.add(name)
        self.bars |= bars

    def finished(self, title: str) -> go.Figure:
        """The figure with its title and axes."""
        self.plot.update_yaxes(rangemode="tozero").update_yaxes(title="accuracy, %", col=1)
        title += " (bars: one standard error)" * self.bars
        return self.plot.update_layout(template=TEMPLATE, height=120 + 320 * self.n_rows, title=title)


def drop_from_peak(table: pd.DataFrame) -> go.Figure:
    """Mean accuracy over tasks, less the model's own greatest, against loop count; `table` as from `tables.drops`."""
    plot = figure("What is lost beyond each model's own peak", "loops T", "mean accuracy less its peak, points")
    for model, points in table.groupby("model", sort=True):
        points = points.sort_values("depth")
        plot.add_scatter(
            x=points["depth"].tolist(),
            y=(-100 * points["drop"]).tolist(),
            customdata=(100 * points["value"]).tolist(),
            name=escape(model),
            mode="lines+markers",
            line=lines(table["model"].unique())[model],
            hovertemplate="T = %{x}: %{y:.1f} points, at %{customdata:.1f} %",
            showlegend=True,
        )
    return _loops(plot, table)


def _loops(plot: go.Figure, table: pd.DataFrame) -> go.Figure:
    """A log axis with a tick at each measured loop count."""
    ticks = sorted(table["depth"].unique().tolist())
    return plot.update_xaxes(type="log", tickvals=ticks, ticktext=list(map(str, ticks)))

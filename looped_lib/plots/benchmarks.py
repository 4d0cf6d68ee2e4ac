"""Accuracy on benchmarks by loop count: a panel per task, and what each model loses beyond its own peak."""

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
    tasks = list(dict.fromkeys([*table["task"], *exits["task"]]))
    n_rows, n_columns = max(1, -(-len(tasks) // _PANELS_IN_A_ROW)), max(1, min(_PANELS_IN_A_ROW, len(tasks)))
    plot = make_subplots(
        n_rows, n_columns, subplot_titles=list(map(escape, tasks)), vertical_spacing=0.25 / n_rows, x_title="loops T"
    )
    line, shown = lines({*table["model"], *exits["model"]}), set()

    def draw(task: str, name: str, points: pd.DataFrame, x: str, **how: Any) -> None:
        panel, points = tasks.index(task), points.sort_values(x)
        plot.add_scatter(
            x=points[x].tolist(),
            y=(100 * points["value"]).tolist(),
            error_y={"array": (100 * points["stderr"]).tolist() if "stderr" in points else None, "thickness": 1},
            name=escape(name),
            legendgroup=name,
            showlegend=name not in shown,
            mode="lines+markers",
            row=panel // n_columns + 1,
            col=panel % n_columns + 1,
            **how,
        )
        shown.add(name)

    for (task, model), points in table.groupby(["task", "model"], sort=True):
        draw(task, model, points, "depth", line=line[model], hovertemplate="T = %{x}: %{y:.1f} %")
    for (task, model, by), points in exits.groupby(["task", "model", "exit"], sort=True):
        dotted = {"line": {**line[model], "dash": "dot"}, "marker": {"symbol": _SYMBOLS[by]}}
        draw(task, f"{model}, exit by {by}", points, "loops", **dotted, hovertemplate="%{x:.2f} loops a token: %{y:.1f} %")
    _loops(plot, table)
    plot.update_yaxes(rangemode="tozero").update_yaxes(title="accuracy, %", col=1)
    title = "Accuracy against loop count" + " (bars: one standard error)" * ("stderr" in table)
    return plot.update_layout(template=TEMPLATE, height=120 + 320 * n_rows, title=title)


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

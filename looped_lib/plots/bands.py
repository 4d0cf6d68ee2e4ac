"""Curves of groups of runs that differ in seed only: the mean over seeds, in a band from the least to the greatest.

A table has a row per seed (and depth, or step) and names its group. If it has a column `panel`, each of its values has a panel of
its own, with the same axes: for more groups than one panel can show. Of an empty table the figure says "not run".
"""

import math
from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from looped_lib.core.html import escape
from looped_lib.plots.style import LOOP_TICKS, TEMPLATE, figure, lines, not_run

_PANELS_IN_A_ROW = 2
_LONG = 16  # characters of a name that would take too much room beside the curves
_BELOW = {"orientation": "h", "x": 0, "yref": "container", "y": 0.01, "yanchor": "bottom"}
_WIDTH, _LINE, _MARKER, _LETTER = 820, 35, 60, 8  # pixels: of a figure and of its legend, as drawn for a paper
_DECADES = 1.3  # from here on powers of ten are labels enough


def accuracy_bands(table: pd.DataFrame, title: str = "Accuracy against loop count") -> go.Figure:
    """Exact match against loop count, a curve per group; `table` has group, depth and accuracy (0 to 1), a row per seed."""
    percent = table.assign(percent=100 * table.accuracy)
    plot = _bands(percent, "depth", "percent", title, "exact match, % of held-out problems", ".1f", " %")
    return _over_loops(plot).update_yaxes(range=[-2, 102])


def state_norm_bands(table: pd.DataFrame, title: str = "Does the state grow?") -> go.Figure:
    """Mean L2 norm of a token's state against loop count, log y; `table` has group, depth and state_norm, a row per seed."""
    return _log(_over_loops(_bands(table, "depth", "state_norm", title, "mean token norm ||h<sub>T</sub>||", ".3g")))


def residual_bands(table: pd.DataFrame, title: str = "Does the state settle?") -> go.Figure:
    """Mean relative change of a token's state in one loop against loop count, log y; `table` has group, depth and residual.

    Seeds whose state no longer moves at all are left out of the mean: a log axis has no 0.
    """
    axis = "||h<sub>T</sub> − h<sub>T−1</sub>|| / ||h<sub>T−1</sub>||"
    return _log(_over_loops(_bands(table[table.residual > 0], "depth", "residual", title, axis, ".3g")))


def loss_bands(table: pd.DataFrame, title: str = "Training") -> go.Figure:
    """Cross-entropy against training step, a curve per group; `table` has group, step and ce, a row per seed."""
    return _log(_bands(table, "step", "ce", title, "cross-entropy per answer token, nats", ".4f"))


def _bands(table: pd.DataFrame, x: str, y: str, title: str, axis: str, digits: str, unit: str = "") -> go.Figure:
    table = table[table[x] > 0].dropna(subset=[y])  # a log axis has no 0
    if table.empty:
        return not_run(title)
    place = {"depth": "loops T", "step": "optimiser step"}[x]
    panels = list(table["panel"].unique()) if "panel" in table else []
    plot = _panels(panels, title, place, axis) if panels else figure(title, place, axis)
    several = False
    for name, rows, where in _groups(table, panels):
        over = rows.groupby(x)[y].agg(["mean", "min", "max", "count"])
        line, in_legend = lines(table["group"].unique())[name], escape(name) not in {trace.name for trace in plot.data}
        shown = f"{place} %{{x}}: %{{y:{digits}}}{unit}"
        if over["count"].max() > 1:
            several = True
            shown += f", %{{customdata[2]}} seeds: %{{customdata[0]:{digits}}} to %{{customdata[1]:{digits}}}{unit}"
            plot.add_trace(_band(over, line["color"]).update(legendgroup=name), **where)
        mean = go.Scatter(x=over.index.tolist(), y=over["mean"].tolist(), mode="lines", line=line, hovertemplate=shown)
        mean.update(
            name=escape(name), legendgroup=name, showlegend=in_legend, customdata=over[["min", "max", "count"]].to_numpy()
        )
        plot.add_trace(mean, **where)
    if several:
        plot.update_layout(title_subtitle_text="mean over seeds, in a band from the least to the greatest")
        plot.update_layout(margin_t=plot.layout.margin.t or 80)
    names = table["group"].unique()
    return _legend_below(plot, names) if max(map(len, names)) > _LONG else plot


def _legend_below(plot: go.Figure, names: Sequence[str]) -> go.Figure:
    """The figure grows by the legend's lines from the third on, which would cover the axis."""
    lines_of_legend = max(2, math.ceil(sum(_MARKER + _LETTER * len(name) for name in names) / _WIDTH))
    height = plot.layout.height + _LINE * (lines_of_legend - 2)
    plot.update_layout(legend=_BELOW, height=height, margin_b=70 + _LINE * lines_of_legend)
    return plot.update_xaxes(title_standoff=5)


def _groups(table: pd.DataFrame, panels: list[str]) -> Iterator[tuple[str, pd.DataFrame, dict[str, int]]]:
    """Each group's name, rows and panel."""
    for panel, part in table.groupby("panel", sort=False) if panels else [(None, table)]:
        row, column = divmod(panels.index(panel), _columns(panels)) if panels else (0, 0)
        for name, rows in part.groupby("group", sort=False):
            yield name, rows, {"row": row + 1, "col": column + 1} if panels else {}


def _band(over: pd.DataFrame, color: str) -> go.Scatter:
    steps = over.index.tolist()
    return go.Scatter(
        x=steps + steps[::-1],
        y=over["max"].tolist() + over["min"].tolist()[::-1],
        fill="toself",
        fillcolor="rgba({}, {}, {}, 0.2)".format(*hex_to_rgb(color)),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
    )


def _panels(panels: list[str], title: str, x: str, y: str) -> go.Figure:
    columns, rows = _columns(panels), -(-len(panels) // _columns(panels))
    spacing = {"vertical_spacing": 0.2 / rows, "horizontal_spacing": 0.05}
    plot = make_subplots(
        rows,
        columns,
        subplot_titles=list(map(escape, panels)),
        shared_xaxes="all",
        shared_yaxes="all",
        x_title=x,
        y_title=y,
        **spacing,
    )
    plot.update_xaxes(showticklabels=True).update_annotations(xshift=-55, selector={"text": y})
    return plot.update_layout(template=TEMPLATE, title=escape(title), height=130 + 300 * rows, margin={"l": 90, "t": 130})


def _columns(panels: list[str]) -> int:
    return min(_PANELS_IN_A_ROW, len(panels))


def _over_loops(plot: go.Figure) -> go.Figure:
    """A log axis; beyond 1,000 loops a panel has room for every other label."""
    if not plot.data:
        return plot
    crowded = "xaxis2" in plot.layout and max(max(trace.x) for trace in plot.data) > 1000
    return plot.update_xaxes(type="log", tickvals=LOOP_TICKS[1::2] if crowded else LOOP_TICKS)


def _log(plot: go.Figure) -> go.Figure:
    """With a log axis up, its labels as many as the range needs."""
    values = [value for trace in plot.data for value in trace.y if value > 0]
    wide = bool(values) and math.log10(max(values) / min(values)) > _DECADES
    ticks = {"dtick": 1} if wide else {"minorloglabels": "complete"}
    return plot.update_yaxes(type="log", exponentformat="power", automargin=True, title_standoff=8, **ticks)

"""Curves of groups of runs that differ in seed only: the mean over seeds, in a band from the least to the greatest."""

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from looped_lib.plots.style import LOOP_TICKS, figure, lines


def accuracy_bands(table: pd.DataFrame) -> go.Figure:
    """Exact match against loop count, a curve per group; `table` has group, depth and accuracy (0 to 1), a row per seed."""
    plot = figure("Accuracy against loop count", "loops T", "exact match, % of held-out problems")
    points = table[table.depth > 0]  # a log axis has no 0
    _add_bands(plot, points.assign(percent=100 * points.accuracy), "depth", "percent", "T = %{x}", ".1f", " %")
    return plot.update_xaxes(type="log", tickvals=LOOP_TICKS).update_yaxes(range=[-2, 102])


def loss_bands(table: pd.DataFrame) -> go.Figure:
    """Cross-entropy against training step, a curve per group; `table` has group, step and ce, a row per seed."""
    plot = figure("Training", "optimiser step", "cross-entropy per answer token, nats")
    _add_bands(plot, table, "step", "ce", "step %{x}", ".4f", "")
    return plot.update_yaxes(type="log", exponentformat="power")


def _add_bands(plot: go.Figure, table: pd.DataFrame, x: str, y: str, place: str, digits: str, unit: str) -> None:
    line = lines(table["group"].unique())
    several = False
    for name, rows in table.groupby("group", sort=False):
        over = rows.groupby(x)[y].agg(["mean", "min", "max", "count"])
        steps, shown = over.index.tolist(), f"{place}: %{{y:{digits}}}{unit}"
        if over["count"].max() > 1:
            several = True
            shown += f", %{{customdata[2]}} seeds: %{{customdata[0]:{digits}}} to %{{customdata[1]:{digits}}}{unit}"
            plot.add_scatter(
                x=steps + steps[::-1],
                y=over["max"].tolist() + over["min"].tolist()[::-1],
                fill="toself",
                fillcolor="rgba({}, {}, {}, 0.2)".format(*hex_to_rgb(line[name]["color"])),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                legendgroup=name,
                showlegend=False,
            )
        plot.add_scatter(
            x=steps,
            y=over["mean"].tolist(),
            customdata=over[["min", "max", "count"]].to_numpy(),
            name=name,
            legendgroup=name,
            showlegend=True,
            mode="lines",
            line=line[name],
            hovertemplate=shown,
        )
    if several:
        plot.update_layout(title_subtitle_text="mean over seeds, in a band from the least to the greatest", margin_t=80)

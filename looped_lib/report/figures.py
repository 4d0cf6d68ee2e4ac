"""Figures of the report from whole results (curves by group: `bands`). Without results each says "not run"."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from looped_lib.core.html import escape
from looped_lib.ouro.evaluate.paper import STARS
from looped_lib.plots.spectra import gains_by_loop
from looped_lib.plots.style import figure, lines, not_run
from looped_lib.report.measures import five_task_means

_KINDS = ("base", "sft", "stars")  # of the paper's table


def gains(result: Mapping[str, Any] | None, title: str) -> go.Figure:
    """Spectral radius, sigma_max and rms singular value of J by loop; `result` is the result.json of notebook 04."""
    if not result:
        return not_run(title)
    return gains_by_loop(result["loops"], result["gains"]).update_layout(title=title)


def beside_paper(table: pd.DataFrame, title: str = "Five benchmarks, mean accuracy") -> go.Figure:
    """Mean accuracy on the paper's tasks by loop count: ours as lines, the paper's as diamonds, a colour per kind of model.

    `table` as from `tables.headlines`. Ours are the models measured on all five; `stars-seed0` is a `stars`.
    """
    ours = five_task_means(table)
    if ours.empty:
        return not_run(title)
    plot, line = figure(title, "loops T", "mean accuracy over five tasks, %"), lines(_KINDS)
    for kind in _KINDS:
        theirs = five_task_means(STARS[STARS["model"] == kind])
        for model, points in ours[ours["model"].str.split("-").str[0] == kind].groupby("model"):
            _add(plot, f"{model}, ours", points, mode="lines+markers", line=line[kind])
        marker = {"color": line[kind]["color"], "symbol": "diamond-open", "size": 11, "line": {"width": 2}}
        _add(plot, f"{kind}, paper", theirs, mode="markers", marker=marker)
    ticks = sorted({*ours["depth"], *STARS["depth"]})
    return plot.update_xaxes(type="log", tickvals=ticks, ticktext=list(map(str, ticks)))


def _add(plot: go.Figure, name: str, points: pd.DataFrame, **style: Any) -> None:
    shown = "T = %{x}: %{y:.2f} %"
    plot.add_scatter(
        x=points["depth"].tolist(), y=(100 * points["value"]).tolist(), name=escape(name), hovertemplate=shown, **style
    )

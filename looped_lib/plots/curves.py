"""Curves over loops or training steps, one line per run: tidy data in, plotly Figures out."""

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from looped_lib.plots.style import figure, line


def accuracy_by_depth(
    depths: Sequence[int], accuracy: Mapping[str, Sequence[float]], trained: int | None = None, log: bool = True
) -> go.Figure:
    """Exact match (0 to 1) against loop count, one line per run; `trained` marks the depth of fixed-depth training."""
    plot = figure("Accuracy against loop count", "loops T", "exact match, % of held-out problems")
    for i, (name, values) in enumerate(accuracy.items()):
        points = [(d, 100 * a) for d, a in zip(depths, values, strict=True) if d > 0 or not log]
        x, y = [d for d, _ in points], [a for _, a in points]
        plot.add_scatter(x=x, y=y, name=name, mode="lines", line=line(i), hovertemplate="T = %{x}: %{y:.1f} %")
    plot.update_yaxes(range=[-2, 102])
    if log:
        plot.update_xaxes(type="log", tickvals=[1, 2, 4, 8, 16, 32, 64, 100, 200, 500, 1000])
    if trained is not None:
        plot.add_vline(x=trained, line_dash="dot")
        # On a log axis plotly takes a line's position in data but an annotation's as log10: the line's own text would stray.
        position = math.log10(trained) if log else trained
        plot.add_annotation(x=position, y=1, yref="paper", text=f"trained depth {trained}", showarrow=False, yanchor="bottom")
    return plot


def loss_by_step(metrics: pd.DataFrame) -> go.Figure:
    """Cross-entropy per answer token against training step, one line per run; `metrics` as from `runs.load_metrics`."""
    plot = figure("Training", "optimiser step", "cross-entropy per answer token, nats")
    for i, (name, run) in enumerate(_by_run(metrics)):
        plot.add_scatter(x=run.step, y=run.ce, name=name, mode="lines", line=line(i), hovertemplate="step %{x}: %{y:.4f}")
    return plot.update_yaxes(type="log")


def state_norm_by_depth(runs: pd.DataFrame) -> go.Figure:
    """Mean L2 norm of a token's state against loop count, log y; `runs` as from `runs.load_runs`."""
    return _by_depth(runs, "state_norm", "Does the state grow?", "mean token norm ||h_T||")


def residual_by_depth(runs: pd.DataFrame) -> go.Figure:
    """Mean relative change of a token's state in one loop against loop count, log y."""
    return _by_depth(runs, "residual", "Does the state settle?", "||h_T - h_(T-1)|| / ||h_(T-1)||")


def _by_depth(runs: pd.DataFrame, column: str, title: str, axis: str) -> go.Figure:
    plot = figure(title, "loops T", axis)
    for i, (name, run) in enumerate(_by_run(runs)):
        plot.add_scatter(x=run.depth, y=run[column], name=name, mode="lines", line=line(i), hovertemplate="T = %{x}: %{y:.3g}")
    return plot.update_yaxes(type="log", exponentformat="power")


def _by_run(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each run's name and rows; the study belongs to the name where there are several, which may share run names."""
    several = table.study.nunique() > 1
    for (study, run), rows in table.groupby(["study", "run"], sort=False):
        yield f"{study}/{run}" if several else run, rows

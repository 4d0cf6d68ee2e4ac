"""Curves over loops or training steps, one line per run: tidy data in, plotly Figures out."""

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from looped_lib.core.html import escape
from looped_lib.dynamics.trajectory import Trajectory
from looped_lib.plots.style import LOOP_TICKS, TEMPLATE, figure, labels, lines


def accuracy_by_depth(
    depths: Sequence[int],
    accuracy: Mapping[str, Sequence[float]],
    trained: int | None = None,
    log: bool = True,
    title: str = "Accuracy against loop count",
) -> go.Figure:
    """Exact match (0 to 1) against loop count, one line per run; `trained` marks the depth of fixed-depth training."""
    plot = figure(title, "loops T", "exact match, % of held-out problems")
    line, label = lines(accuracy), labels(accuracy)
    for name, values in accuracy.items():
        points = [(d, 100 * a) for d, a in zip(depths, values, strict=True) if d > 0 or not log]
        x, y = [d for d, _ in points], [a for _, a in points]
        plot.add_scatter(x=x, y=y, name=label[name], mode="lines", line=line[name], hovertemplate="T = %{x}: %{y:.1f} %")
    plot.update_yaxes(range=[-2, 102])
    if log:
        plot.update_xaxes(type="log", tickvals=LOOP_TICKS)
    if trained is not None:
        plot.add_vline(x=trained, line_dash="dot")
        # On a log axis plotly takes a line's position in data but an annotation's as log10: the line's own text would stray.
        position = math.log10(trained) if log else trained
        plot.add_annotation(
            x=position, y=1, yref="paper", text=f"fixed training depth {trained}", showarrow=False, yanchor="bottom"
        )
    return plot


def loss_by_step(metrics: pd.DataFrame) -> go.Figure:
    """Cross-entropy per answer token against training step, one line per run; `metrics` as from `runs.load_metrics`."""
    plot = figure("Training", "optimiser step", "cross-entropy per answer token, nats")
    names = [name for name, _ in _by_run(metrics)]
    line, label = lines(names), labels(names)
    for name, run in _by_run(metrics):
        plot.add_scatter(
            x=run.step, y=run.ce, name=label[name], mode="lines", line=line[name], hovertemplate="step %{x}: %{y:.4f}"
        )
    return plot.update_yaxes(type="log", tickformat="~g")


def state_norm_by_depth(runs: pd.DataFrame) -> go.Figure:
    """Mean L2 norm of a token's state against loop count, log y; `runs` as from `runs.load_runs`."""
    return _by_depth(runs, "state_norm", "Does the state grow?", "mean token norm ||h<sub>T</sub>||")


def residual_by_depth(runs: pd.DataFrame) -> go.Figure:
    """Mean relative change of a token's state in one loop against loop count, log y."""
    return _by_depth(runs, "residual", "Does the state settle?", "||h<sub>T</sub> − h<sub>T−1</sub>|| / ||h<sub>T−1</sub>||")


def exit_tradeoff(curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]) -> go.Figure:
    """Accuracy (0 to 1) against mean loops used, one line per run: (tolerances, mean loops, accuracy), a point per tolerance."""
    plot = figure("Stopping at rest", "mean loops a character", "exact match, % of held-out problems")
    for name, (tolerances, loops, accuracy) in curves.items():
        plot.add_scatter(
            x=list(loops),
            y=[100 * a for a in accuracy],
            name=escape(name),
            mode="lines+markers",
            line=lines(curves)[name],
            customdata=list(tolerances),
            hovertemplate="tolerance %{customdata:.0e}: %{x:.1f} loops, %{y:.1f} %",
        )
    return plot.update_xaxes(type="log", tickvals=LOOP_TICKS).update_yaxes(range=[-2, 102])


def movement(paths: Mapping[str, Trajectory]) -> go.Figure:
    """What the loops do to the state, means over tokens and problems, one colour per run.

    Panels: norm (solid) and norm before the loop's last norm (dotted), change from the start, change in one loop, cosine to
    the last state.
    """
    titles = ["norm (dotted: before the loop's norm)", "change from the start", "change in one loop", "cosine to the last state"]
    plot = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.2)
    for name, path in paths.items():
        tables = [("solid", path.norm, 0), ("dot", path.before_norm, 0), ("solid", path.from_start, 1)]
        tables += [("solid", path.residual, 2), ("solid", path.cosine_to_final, 3)]
        for dash, table, panel in tables:
            plot.add_scatter(
                x=path.loops.tolist(),
                y=table.double().mean((1, 2)).tolist(),
                name=escape(name),
                legendgroup=name,
                showlegend=panel == 1,
                mode="lines",
                line={"color": lines(paths)[name]["color"], "dash": dash},
                hovertemplate="t = %{x}: %{y:.3g}",
                row=panel // 2 + 1,
                col=panel % 2 + 1,
            )
    plot.update_xaxes(title="loops t")
    for panel, (title, kind) in enumerate((("||h||", "log"), ("relative", "linear"), ("relative", "log"), ("cosine", "linear"))):
        plot.update_yaxes(title=title, type=kind, tickformat="~g", row=panel // 2 + 1, col=panel % 2 + 1)
    return plot.update_layout(template=TEMPLATE, height=700, title="What the loops do to the state")


def _by_depth(runs: pd.DataFrame, column: str, title: str, axis: str) -> go.Figure:
    plot = figure(title, "loops T", axis)
    names = [name for name, _ in _by_run(runs)]
    line, label = lines(names), labels(names)
    for name, run in _by_run(runs):
        plot.add_scatter(
            x=run.depth, y=run[column], name=label[name], mode="lines", line=line[name], hovertemplate="T = %{x}: %{y:.3g}"
        )
    return plot.update_yaxes(type="log", tickformat="~g")


def _by_run(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each run's name and rows; the study belongs to the name where there are several, which may share run names."""
    several = table.study.nunique() > 1
    for (study, run), rows in table.groupby(["study", "run"], sort=False):
        yield f"{study}/{run}" if several else run, rows

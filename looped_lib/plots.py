"""Figures: tidy data in, plotly Figures out. One template, one colour-blind-safe palette (Okabe and Ito 2008)."""

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from looped_lib.trajectory import Projection

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442"]
DASHES = ["solid", "dash", "dot"]
TEMPLATE = go.layout.Template(
    layout={
        "colorway": PALETTE,
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 14},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": {"showline": True, "linecolor": "#444", "gridcolor": "#e6e6e6", "zeroline": False, "ticks": "outside"},
        "yaxis": {"showline": True, "linecolor": "#444", "gridcolor": "#e6e6e6", "zeroline": False, "ticks": "outside"},
        "legend": {"bgcolor": "rgba(255,255,255,0.8)"},
        "margin": {"l": 70, "r": 20, "t": 60, "b": 60},
    }
)


def accuracy_by_depth(
    depths: Sequence[int], accuracy: Mapping[str, Sequence[float]], trained: int | None = None, log: bool = True
) -> go.Figure:
    """Exact match (0 to 1) against loop count, one line per run; `trained` marks the depth of fixed-depth training."""
    figure = _figure("Accuracy against loop count", "loops T", "exact match, % of held-out problems")
    for i, (name, values) in enumerate(accuracy.items()):
        points = [(d, 100 * a) for d, a in zip(depths, values, strict=True) if d > 0 or not log]
        x, y = [d for d, _ in points], [a for _, a in points]
        figure.add_scatter(x=x, y=y, name=name, mode="lines", line=_line(i), hovertemplate="T = %{x}: %{y:.1f} %")
    figure.update_yaxes(range=[-2, 102])
    if log:
        figure.update_xaxes(type="log", tickvals=[1, 2, 4, 8, 16, 32, 64, 100, 200, 500, 1000])
    if trained is not None:
        figure.add_vline(x=trained, line_dash="dot")
        # On a log axis plotly takes a line's position in data but an annotation's as log10: the line's own text would stray.
        position = math.log10(trained) if log else trained
        figure.add_annotation(x=position, y=1, yref="paper", text=f"trained depth {trained}", showarrow=False, yanchor="bottom")
    return figure


def loss_by_step(metrics: pd.DataFrame) -> go.Figure:
    """Cross-entropy per answer token against training step, one line per run; `metrics` as from `runs.load_metrics`."""
    figure = _figure("Training", "optimiser step", "cross-entropy per answer token, nats")
    for i, (name, run) in enumerate(_by_run(metrics)):
        figure.add_scatter(x=run.step, y=run.ce, name=name, mode="lines", line=_line(i), hovertemplate="step %{x}: %{y:.4f}")
    return figure.update_yaxes(type="log")


def state_norm_by_depth(runs: pd.DataFrame) -> go.Figure:
    """Mean L2 norm of a token's state against loop count, log y; `runs` as from `runs.load_runs`."""
    return _by_depth(runs, "state_norm", "Does the state grow?", "mean token norm ||h_T||")


def residual_by_depth(runs: pd.DataFrame) -> go.Figure:
    """Mean relative change of a token's state in one loop against loop count, log y."""
    return _by_depth(runs, "residual", "Does the state settle?", "||h_T - h_(T-1)|| / ||h_(T-1)||")


def pca_trajectories(projections: Mapping[str, Projection]) -> go.Figure:
    """One panel per run: the path of each sequence through its run's first two or three principal components.

    A circle marks h_0, a cross the last loop. The models have different state spaces: axes are not comparable between panels.
    """
    solid = next(iter(projections.values())).coordinates.shape[2] > 2
    scatter, kind, names = (go.Scatter3d, "scene", "xyz") if solid else (go.Scatter, "xy", "xy")
    figure = make_subplots(
        1,
        len(projections),
        specs=[[{"type": kind}] * len(projections)],
        subplot_titles=list(projections),
        horizontal_spacing=0.09,
    )
    for column, (name, projection) in enumerate(projections.items(), start=1):
        for i in range(projection.coordinates.shape[1]):
            path = projection.coordinates[:, i]
            marks = len(path) - 2
            trace = scatter(
                dict(zip(names, path.T, strict=False)),
                name=f"{name}, problem {i + 1}",
                mode="lines+markers",
                line={"width": 1, "color": PALETTE[i % len(PALETTE)]},
                marker={"symbol": ["circle-open", *["circle"] * marks, "x"], "size": [10, *[4] * marks, 10]},
                customdata=list(range(len(path))),
                hovertemplate="loop %{customdata}: (" + ", ".join(f"%{{{n}:.2f}}" for n in names) + ")",
                showlegend=False,
            )
            figure.add_trace(trace, row=1, col=column)
        titles = [f"PC {k} ({100 * share:.0f} % of variance)" for k, share in enumerate(projection.explained, start=1)]
        axes = {f"{n}axis": {"title": {"text": title}} for n, title in zip(names, titles, strict=False)}
        if solid:
            figure.update_scenes(axes, row=1, col=column)
        else:
            figure.update_xaxes(axes["xaxis"], row=1, col=column).update_yaxes(axes["yaxis"], row=1, col=column)
    return figure.update_layout(template=TEMPLATE, height=420, title="Trajectories of the state (circle: h_0, cross: last loop)")


def tour_sentences(depths: Sequence[int], accuracy: Mapping[str, Sequence[float]], trained: int = 4) -> str:
    """Two sentences that say what the tour's numbers say, whatever they are: where the fixed model falls, what STARS holds.

    `accuracy` (0 to 1 at each of `depths`, ascending) has the runs fixed, random and stars.
    """
    at = {name: dict(zip(depths, values, strict=True)) for name, values in accuracy.items()}
    last = depths[-1]
    first = min(trained, last)
    deeper = [d for d in depths if d >= first]
    fallen = next((d for d in deeper if at["fixed"][d] < at["fixed"][first] / 2), None)
    where = (
        f"it first falls below half of that at {fallen} loops"
        if fallen
        else f"it stays at half of that or more up to {last} loops"
    )
    worst = min(deeper, key=lambda d: at["stars"][d])

    def percent(name: str, depth: int) -> str:
        return f"{100 * at[name][depth]:.1f} %"

    return (
        f"The model trained at {trained} loops solves {percent('fixed', first)} of the held-out problems at {first} loops; "
        f"{where}, where it solves {percent('fixed', fallen or last)}. Over all loop counts from {first} to {last}, STARS "
        f"solves at least {percent('stars', worst)} (its lowest, at {worst} loops); "
        f"at {last} loops it solves {percent('stars', last)}, "
        f"random loops alone {percent('random', last)}."
    )


def _by_depth(runs: pd.DataFrame, column: str, title: str, axis: str) -> go.Figure:
    figure = _figure(title, "loops T", axis)
    for i, (name, run) in enumerate(_by_run(runs)):
        figure.add_scatter(x=run.depth, y=run[column], name=name, mode="lines", line=_line(i), hovertemplate="T = %{x}: %{y:.3g}")
    return figure.update_yaxes(type="log", exponentformat="power")


def _by_run(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each run's name and rows; the study belongs to the name where there are several, which may share run names."""
    several = table.study.nunique() > 1
    for (study, run), rows in table.groupby(["study", "run"], sort=False):
        yield f"{study}/{run}" if several else run, rows


def _line(i: int) -> dict[str, str]:
    """Colour and dash of line number i; the dash tells apart what shares a colour."""
    return {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i // len(PALETTE) % len(DASHES)]}


def _figure(title: str, x: str, y: str) -> go.Figure:
    return go.Figure(layout={"template": TEMPLATE, "title": title, "xaxis_title": x, "yaxis_title": y, "height": 460})

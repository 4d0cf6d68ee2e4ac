"""Figures: tidy data in, plotly Figures out. One template, one colour-blind-safe palette (Okabe and Ito 2008)."""

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from looped_lib.trajectory import Projection

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442"]
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
    for name, values in accuracy.items():
        points = [(d, 100 * a) for d, a in zip(depths, values, strict=True) if d > 0 or not log]
        x, y = zip(*points, strict=True)
        figure.add_scatter(x=x, y=y, name=name, mode="lines", hovertemplate="T = %{x}: %{y:.1f} %")
    figure.update_yaxes(range=[-2, 102])
    if log:
        figure.update_xaxes(type="log", tickvals=[1, 2, 4, 8, 16, 32, 64, 100, 200, 500, 1000])
    if trained is not None:
        figure.add_vline(x=trained, line_dash="dot", annotation_text=f"trained depth {trained}")
    return figure


def loss_by_step(metrics: pd.DataFrame) -> go.Figure:
    """Cross-entropy per answer token against training step, one line per run; `metrics` as from `runs.load_metrics`."""
    figure = _figure("Training", "optimiser step", "cross-entropy per answer token, nats")
    for name, run in metrics.groupby("run", sort=False):
        figure.add_scatter(x=run.step, y=run.ce, name=name, mode="lines", hovertemplate="step %{x}: %{y:.4f}")
    return figure.update_yaxes(type="log")


def state_norm_by_depth(runs: pd.DataFrame) -> go.Figure:
    """Mean L2 norm of a token's state against loop count, log y; `runs` as from `runs.load_runs`."""
    return _by_depth(runs, "state_norm", "Does the state grow?", "mean token norm ||h_T||")


def residual_by_depth(runs: pd.DataFrame) -> go.Figure:
    """Mean relative change of a token's state in one loop against loop count, log y."""
    return _by_depth(runs, "residual", "Does the state settle?", "||h_T - h_(T-1)|| / ||h_(T-1)||")


def pca_trajectories(projections: Mapping[str, Projection]) -> go.Figure:
    """One panel per run: the path of each sequence through its run's first two principal components.

    A circle marks h_0, a cross the last loop. The models have different state spaces: axes are not comparable between panels.
    """
    figure = make_subplots(1, len(projections), subplot_titles=list(projections), horizontal_spacing=0.09)
    for column, (name, projection) in enumerate(projections.items(), start=1):
        for i in range(projection.coordinates.shape[1]):
            path = projection.coordinates[:, i]
            symbols = ["circle-open", *["circle"] * (len(path) - 2), "x"]
            sizes = [10, *[4] * (len(path) - 2), 10]
            figure.add_scatter(
                **{"x": path[:, 0], "y": path[:, 1], "mode": "lines+markers", "row": 1, "col": column},
                **{"name": f"{name}, problem {i + 1}", "showlegend": False, "customdata": list(range(len(path)))},
                **{"line": {"width": 1, "color": PALETTE[i % 8]}, "marker": {"symbol": symbols, "size": sizes}},
                hovertemplate="loop %{customdata}: (%{x:.2f}, %{y:.2f})",
            )
        for axis, update in ((0, figure.update_xaxes), (1, figure.update_yaxes)):
            title = f"PC {axis + 1} ({100 * projection.explained[axis]:.0f} % of variance)"
            update(title_text=title, row=1, col=column)
    return figure.update_layout(template=TEMPLATE, height=420, title="Trajectories of the state (circle: h_0, cross: last loop)")


def tour_sentences(depths: Sequence[int], accuracy: Mapping[str, Sequence[float]]) -> str:
    """Two sentences that say what the tour's numbers say: the collapse of the fixed model, and what STARS holds."""
    at = {name: dict(zip(depths, values, strict=True)) for name, values in accuracy.items()}
    last = depths[-1]
    first = min(4, last)
    low = {name: min((at[name][d], d) for d in depths if d >= first) for name in at}

    def percent(value: float) -> str:
        return f"{100 * value:.1f} %"

    return (
        f"The model trained at {first} loops solves {percent(at['fixed'][first])} of the held-out problems there and "
        f"{percent(at['fixed'][last])} at {last} loops. From {first} to {last} loops, STARS never solves fewer than "
        f"{percent(low['stars'][0])} (at {low['stars'][1]} loops), where random loops alone fall to "
        f"{percent(low['random'][0])} (at {low['random'][1]} loops)."
    )


def _by_depth(runs: pd.DataFrame, column: str, title: str, axis: str) -> go.Figure:
    figure = _figure(title, "loops T", axis)
    for name, run in runs.groupby("run", sort=False):
        figure.add_scatter(x=run.depth, y=run[column], name=name, mode="lines", hovertemplate="T = %{x}: %{y:.3g}")
    return figure.update_yaxes(type="log", exponentformat="power")


def _figure(title: str, x: str, y: str) -> go.Figure:
    return go.Figure(layout={"template": TEMPLATE, "title": title, "xaxis_title": x, "yaxis_title": y, "height": 460})

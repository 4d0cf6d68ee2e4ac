"""Paths of the state through its principal components."""

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.basedatatypes import BaseTraceType
from plotly.subplots import make_subplots

from looped_lib.core.html import escape
from looped_lib.dynamics.pca import Projection
from looped_lib.plots.style import PALETTE, TEMPLATE, lines

_TITLE = "Trajectories of the state (○ h_0, ◆ last loop)"


def pca_trajectories(projections: Mapping[str, Projection]) -> go.Figure:
    """One panel per run: the path of each sequence through its run's first two or three principal components.

    A circle marks h_0, a diamond the last loop. The models have different state spaces: axes are not comparable between panels.
    """
    solid = _solid(projections)
    kind = "scene" if solid else "xy"
    figure = make_subplots(
        1,
        len(projections),
        specs=[[{"type": kind}] * len(projections)],
        subplot_titles=list(map(escape, projections)),
        horizontal_spacing=0.12,
    )
    for column, (name, projection) in enumerate(projections.items(), start=1):
        for i in range(projection.coordinates.shape[1]):
            trace = _path(projection, i, f"{name}, problem {i + 1}", PALETTE[i % len(PALETTE)])
            figure.add_trace(trace.update(showlegend=False), row=1, col=column)
        axes = axis_titles(projection)
        if solid:
            figure.update_scenes(axes, row=1, col=column)
        else:
            figure.update_xaxes(axes["xaxis"], row=1, col=column).update_yaxes(axes["yaxis"], row=1, col=column)
    return figure.update_layout(template=TEMPLATE, height=420, title=_TITLE)


def shared_trajectories(projections: Mapping[str, Projection]) -> go.Figure:
    """All runs on the axes that they share (see `pca.project_jointly`): one colour per run, one path per sequence."""
    figure = go.Figure()
    for name, projection in projections.items():
        for i in range(projection.coordinates.shape[1]):
            figure.add_trace(
                _path(projection, i, name, lines(projections)[name]["color"]).update(legendgroup=name, showlegend=i == 0)
            )
    axes = axis_titles(next(iter(projections.values())))
    figure.update_layout(scene=axes) if _solid(projections) else figure.update_layout(axes)
    return figure.update_layout(template=TEMPLATE, height=460, title=_TITLE)


def axis_titles(projection: Projection) -> dict[str, dict[str, dict[str, str]]]:
    """Layout of the axes: each named with its share of the variance."""
    titles = [f"PC {k} ({100 * share:.0f} % of variance)" for k, share in enumerate(projection.explained, start=1)]
    return {f"{n}axis": {"title": {"text": title}} for n, title in zip("xyz", titles, strict=False)}


def _path(projection: Projection, i: int, name: str, color: str) -> BaseTraceType:
    """The path of sequence `i`."""
    path = projection.coordinates[:, i]
    names = "xyz"[: path.shape[1]]
    marks = len(path) - 2
    return (go.Scatter3d if len(names) > 2 else go.Scatter)(
        dict(zip(names, path.T, strict=True)),
        name=escape(name),
        mode="lines+markers",
        line={"width": 1, "color": color},
        marker={"symbol": ["circle-open", *["circle"] * marks, "diamond"], "size": [10, *[4] * marks, 10]},
        customdata=projection.loops,
        hovertemplate="loop %{customdata}: (" + ", ".join(f"%{{{n}:.2f}}" for n in names) + ")",
    )


def _solid(projections: Mapping[str, Projection]) -> bool:
    return next(iter(projections.values())).coordinates.shape[2] > 2

"""Paths of the state through its principal components."""

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from looped_lib.pca import Projection
from looped_lib.plots.style import PALETTE, TEMPLATE


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
                customdata=projection.loops,
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

"""Token by loop heatmaps: which characters move when."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from looped_lib.core.html import escape
from looped_lib.dynamics.trajectory import LogitLens, Trajectory
from looped_lib.plots.style import TEMPLATE

_PANELS = (  # title, unit, whether on a log scale
    ("norm", "||h||", False),
    ("change from the start", "||h_t - h_0|| / ||h_0||", False),
    ("change between loops", "||h_t - h_(t-1)|| / ||h_(t-1)||", True),
    ("entropy of the next token", "nats", False),
)


def heatmaps(path: Trajectory, lens: LogitLens, labels: Sequence[str], run: str, problem: int = 0) -> go.Figure:
    """Norm, change from the start, change between loops and entropy of every token of one problem of a run after every loop.

    `labels` are the texts of the tokens, one per position. ValueError if there are more or fewer.
    """
    if len(labels) != path.ids.shape[1]:
        raise ValueError(f"heatmaps needs a label for each of the {path.ids.shape[1]} positions, got {len(labels)}")
    values = (path.norm, path.from_start, path.residual, lens.entropy)
    titles = [f"{title}, {unit}" for title, unit, _ in _PANELS]
    plot = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.17, horizontal_spacing=0.2)
    for i, (table, (title, _, log)) in enumerate(zip(values, _PANELS, strict=True)):
        row, column = divmod(i, 2)
        plot.add_trace(_panel(table[:, problem], path.loops.tolist(), title, log, (row, column)), row=row + 1, col=column + 1)
    shown = ["␣" if token == " " else escape(token) for token in labels]
    plot.update_yaxes(tickvals=list(range(len(labels))), ticktext=shown, autorange="reversed").update_yaxes(title="token", col=1)
    plot.update_xaxes(title="loops t")
    return plot.update_layout(
        template=TEMPLATE, height=760, title=escape(f"{run}: every token of {''.join(labels)} after every loop")
    )


def _panel(table: Float[Tensor, "loop seq"], loops: list[int], title: str, log: bool, place: tuple[int, int]) -> go.Heatmap:
    row, column = place
    shown = table.T.double()
    bar: dict[str, Any] = {"len": 0.44, "y": 0.79 - 0.585 * row, "x": 0.41 + 0.6 * column, "thickness": 12}
    if log:
        shown = shown.where(shown > 0, float("nan")).log10()
        powers = range(math.ceil(shown.nan_to_num(0.0).min()), math.floor(shown.nan_to_num(-99.0).max()) + 1)
        powers = powers[:: math.ceil(len(powers) / 8)] if powers else powers
        bar |= {"tickvals": list(powers), "ticktext": [f"1e{k}" for k in powers]}
    return go.Heatmap(
        z=shown.numpy(),
        x=loops,
        customdata=table.T.numpy(),
        colorscale="Cividis",
        colorbar=bar,
        hovertemplate=f"loop %{{x}}, token %{{y}}: {title} %{{customdata:.3g}}<extra></extra>",
    )

"""How a fine-tuning run goes, by update; and how the depth of its micro-batches was drawn."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from looped_lib.core.html import escape
from looped_lib.plots.style import TEMPLATE, lines

PANELS = {
    "loss": "cross-entropy per answer token, nats",
    "penalty": "penalty R",
    "grad_norm": "gradient norm",
    "tokens_per_sec": "tokens per second",
}


def finetuning(runs: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Loss, penalty (if any), gradient norm and speed against update, a line per run; `runs` as from `Job.metrics`."""
    plot = make_subplots(2, 2, subplot_titles=list(PANELS.values()), vertical_spacing=0.16)
    line = lines(runs)
    for name, table in runs.items():
        for panel, column in enumerate(PANELS):
            points = series(table, column)
            plot.add_scatter(
                x=points.index,
                y=points.to_numpy(),
                name=escape(name),
                legendgroup=name,
                showlegend=panel == 0,
                mode="lines",
                line=line[name],
                hovertemplate="update %{x}: %{y:.4g}",
                row=panel // 2 + 1,
                col=panel % 2 + 1,
            )
    plot.update_xaxes(title="update", row=2)
    for panel, column in enumerate(PANELS):
        if column != "tokens_per_sec":
            plot.update_yaxes(type="log", exponentformat="power", row=panel // 2 + 1, col=panel % 2 + 1)
    return plot.update_layout(template=TEMPLATE, height=620, title="Fine-tuning")


def series(table: pd.DataFrame, column: str) -> pd.Series:
    """A column of a run's metrics by update; a penalty of 0 is none."""
    if table.empty:
        return pd.Series(dtype=float)
    values = table.set_index("step")[column]
    return values[values > 0] if column == "penalty" else values

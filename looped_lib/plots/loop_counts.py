"""The loop counts that training drew, against the distribution they were drawn from."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.subplots import make_subplots

from looped_lib.config import ExperimentConfig
from looped_lib.core.html import escape
from looped_lib.plots.style import PALETTE, TEMPLATE, not_run

_PANELS_IN_A_ROW = 3
_SHOWN = 0.99  # of the probability: the rest of a long tail would squeeze all else


def loop_counts(configs: Mapping[str, ExperimentConfig], title: str = "Loop counts drawn in training") -> go.Figure:
    """A panel per run: how often each loop count was drawn (bars), and its probability (circles), both in per cent.

    What a run drew follows from its config alone: a draw is a function of seed and step.
    """
    if not configs:
        return not_run(title)
    names = [f"{escape(name)}: mean {config.loops.mean():.1f}" for name, config in configs.items()]
    n_columns = min(_PANELS_IN_A_ROW, len(configs))
    n_rows = -(-len(configs) // n_columns)
    plot = make_subplots(n_rows, n_columns, subplot_titles=names, vertical_spacing=0.3 / n_rows)
    for panel, config in enumerate(configs.values()):
        place = {"row": panel // n_columns + 1, "col": panel % n_columns + 1}
        counts, drawn, expected = _shares(config)
        bars = {"name": "drawn", "marker_color": PALETTE[4], "hovertemplate": "T = %{x}: drawn %{y:.2f} %<extra></extra>"}
        marks = {"name": "probability", "mode": "markers", "hovertemplate": "T = %{x}: probability %{y:.2f} %<extra></extra>"}
        marker = {"color": PALETTE[6], "symbol": "circle-open", "size": 7}
        legend = {"showlegend": panel == 0}
        plot.add_bar(x=counts, y=100 * drawn, legendgroup="drawn", **bars, **legend, **place)
        plot.add_scatter(x=counts, y=100 * expected, legendgroup="pmf", marker=marker, **marks, **legend, **place)
    plot.update_xaxes(title="loops T", rangemode="tozero").update_yaxes(title="% of draws", col=1).update_yaxes(
        rangemode="tozero"
    )
    legend = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02 + 0.14 / n_rows, "yanchor": "bottom"}
    return plot.update_layout(template=TEMPLATE, height=120 + 340 * n_rows, title=title, legend=legend, margin_t=110, bargap=0.1)


def _shares(
    config: ExperimentConfig,
) -> tuple[Int[np.ndarray, "loop"], Float[np.ndarray, "loop"], Float[np.ndarray, "loop"]]:
    """Loop counts, the share of the draws that each had, and its probability."""
    size = config.training.batch_size if config.training.per_sequence_loops else None
    draws = np.ravel([config.loops.sample(config.seed, step, size) for step in range(config.training.steps)])
    support = config.loops.support
    drawn = np.bincount(draws, minlength=support[-1] + 1)[support] / len(draws)
    shown = support <= config.loops.quantile(_SHOWN)
    return support[shown], drawn[shown], config.loops.pmf()[shown]

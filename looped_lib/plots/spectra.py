"""Eigenvalues of one loop's Jacobian in the complex plane, and what it does to a difference along a trajectory."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Complex
from plotly.subplots import make_subplots

from looped_lib.core.html import escape
from looped_lib.plots.style import LOOP_TICKS, TEMPLATE, figure, lines

_QUANTITIES = {"radius": "spectral radius", "sigma_max": "largest singular value", "rms": "rms singular value"}
_SHOWN = 600  # eigenvalues drawn per loop: the largest; those near zero fall on one another


def eigenvalue_cloud(spectra: Mapping[int, Complex[np.ndarray, "seq d_model"]], run: str) -> go.Figure:
    """The eigenvalues of J after each of several loops (keys), with the unit circle and a slider over the loops.

    Colour tells the position whose block an eigenvalue belongs to. Of each loop the largest are drawn.
    """
    drawn = {loop: _largest(values) for loop, values in spectra.items()}
    reach = 1.1 * max(1.0, max(float(np.abs(values).max()) for values, _ in drawn.values()))
    circle = np.exp(2j * np.pi * np.linspace(0, 1, 181))
    plot = figure("", "real part", "imaginary part")
    plot.add_scatter(x=circle.real, y=circle.imag, mode="lines", name="unit circle", line={"color": "#444", "dash": "dot"})
    first = next(iter(drawn))
    plot.add_trace(_cloud(*drawn[first]))
    titles = {loop: _title(run, loop, *values) for loop, values in drawn.items()}
    plot.frames = [
        go.Frame(data=[_cloud(*drawn[loop])], traces=[1], name=str(loop), layout={"title": {"text": title}})
        for loop, title in titles.items()
    ]
    steps = [
        {"label": str(loop), "method": "animate", "args": [[str(loop)], {"mode": "immediate", "frame": {"duration": 0}}]}
        for loop in drawn
    ]
    plot.update_xaxes(range=[-reach, reach], constrain="domain")
    plot.update_yaxes(range=[-reach, reach], scaleanchor="x", constrain="domain")
    return plot.update_layout(
        title=titles[first],
        height=620,
        showlegend=False,
        sliders=[{"steps": steps, "currentvalue": {"prefix": "after loop "}, "pad": {"t": 40}}],
    )


def gains_by_loop(loops: Sequence[int], gains: Mapping[str, Mapping[str, Sequence[float]]]) -> go.Figure:
    """Spectral radius, sigma_max and rms singular value of J along a trajectory: a panel each, a line per run.

    `gains` as from `dynamics.gains`, by run. The line at 1: below it differences shrink.
    """
    quantities = list(next(iter(gains.values())))
    titles = [_QUANTITIES.get(quantity, quantity) for quantity in quantities]
    plot = make_subplots(1, len(quantities), subplot_titles=titles, shared_yaxes="all", horizontal_spacing=0.04)
    for name, values in gains.items():
        for column, quantity in enumerate(quantities, start=1):
            plot.add_scatter(
                x=list(loops),
                y=list(values[quantity]),
                name=escape(name),
                legendgroup=name,
                showlegend=column == 1,
                mode="lines+markers",
                line=lines(gains)[name],
                hovertemplate=f"{quantity}, t = %{{x}}: %{{y:.4f}}",
                row=1,
                col=column,
            )
    plot.add_hline(y=1, line_color="#888")
    plot.update_xaxes(title="loops t", type="log", tickvals=LOOP_TICKS[::2])
    plot.update_yaxes(type="log", dtick="D2", minorloglabels="complete").update_yaxes(title="gain of J at h<sub>t</sub>", col=1)
    return plot.update_layout(template=TEMPLATE, height=460, margin_t=90, title="What one loop does to a small difference")


def _cloud(values: np.ndarray, positions: np.ndarray) -> go.Scatter:
    bar = {"title": {"text": "position"}}
    return go.Scatter(
        x=values.real.round(5),
        y=values.imag.round(5),
        mode="markers",
        marker={"size": 5, "opacity": 0.7, "color": positions, "colorscale": "Viridis", "colorbar": bar},
        customdata=np.abs(values).round(5),
        hovertemplate="%{x:.3f} + %{y:.3f} i, modulus %{customdata:.4f}, position %{marker.color}<extra></extra>",
    )


def _largest(values: Complex[np.ndarray, "seq d_model"]) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues of greatest modulus, greatest first, and their positions."""
    flat = values.ravel()
    order = np.argsort(-np.abs(flat))[:_SHOWN]
    return flat[order], order // values.shape[1]


def _title(run: str, loop: int, values: np.ndarray, positions: np.ndarray) -> str:
    return f"{escape(run)}: eigenvalues of J after loop {loop}, radius {abs(values[0]):.4f} (position {positions[0]})"

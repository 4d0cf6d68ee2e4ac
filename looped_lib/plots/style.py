"""What all figures share: one template, one colour-blind-safe palette (Okabe and Ito 2008)."""

from collections.abc import Iterable

import plotly.graph_objects as go

from looped_lib.core.html import escape

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442"]
DASHES = ["solid", "dash", "dot"]
LOOP_TICKS = [1, 2, 4, 8, 16, 32, 64, 100, 200, 500, 1000, 2000, 5000, 10_000]  # of a log axis
TEMPLATE = go.layout.Template(
    layout={
        "colorway": PALETTE,
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 14},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": {"showline": True, "linecolor": "#444", "gridcolor": "#e6e6e6", "zeroline": False, "ticks": "outside"},
        "yaxis": {"showline": True, "linecolor": "#444", "gridcolor": "#e6e6e6", "zeroline": False, "ticks": "outside"},
        "hoverlabel": {"namelength": -1},  # names whole
        "legend": {"bgcolor": "rgba(255,255,255,0.8)"},
        "title": {"x": 0, "xref": "paper"},  # the centre is where plotly's buttons are
        "margin": {"l": 70, "r": 20, "t": 60, "b": 70},
    }
)


def lines(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Colour and dash of each run's line, by alphabetical order: the same in all figures of the same runs, in whatever order they
    are drawn. The dash tells apart what shares a colour."""
    return {
        name: {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i // len(PALETTE) % len(DASHES)]}
        for i, name in enumerate(sorted(names))
    }


def labels(names: Iterable[str]) -> dict[str, str]:
    """Each run's name in the legend, without the parts between dashes that all runs share (a seed, the norm's type)."""
    names = list(names)
    parts = {name: name.split("-") for name in names}
    shared = set.intersection(*map(set, parts.values())) if len(names) > 1 else set()
    short = {name: "-".join(part for part in own if part not in shared) for name, own in parts.items()}
    told_apart = all(short.values()) and len(set(short.values())) == len(names)
    return {name: escape(short[name] if told_apart else name) for name in names}


def figure(title: str, x: str, y: str) -> go.Figure:
    """An empty figure with its titles."""
    return go.Figure(layout={"template": TEMPLATE, "title": escape(title), "xaxis_title": x, "yaxis_title": y, "height": 460})


def not_run(title: str) -> go.Figure:
    """A figure that says that there is nothing to show yet."""
    plot = go.Figure(layout={"template": TEMPLATE, "title": escape(title), "height": 460})
    plot.update_xaxes(visible=False).update_yaxes(visible=False)
    place = {"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper"}
    return plot.add_annotation(place, text="not run", showarrow=False, font={"size": 20, "color": "#888"})

"""What all figures share: one template, one colour-blind-safe palette (Okabe and Ito 2008)."""

import json
from collections.abc import Iterable

import plotly.graph_objects as go
import plotly.io

from looped_lib.core.html import escape

# Its black is grey here: some pages are dark.
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#F0E442"]
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
DARK = go.layout.Template(TEMPLATE).update(
    layout={
        "font": {"color": "#e0e0e0"},
        "paper_bgcolor": "#111111",
        "plot_bgcolor": "#111111",
        "xaxis": {"linecolor": "#aaa", "gridcolor": "#333"},
        "yaxis": {"linecolor": "#aaa", "gridcolor": "#333"},
        "scene": {f"{axis}axis": {"gridcolor": "#444", "zerolinecolor": "#444", "backgroundcolor": "#111111"} for axis in "xyz"},
        "legend": {"bgcolor": "rgba(17,17,17,0.8)"},
        "shapedefaults": {"line": {"color": "#aaa"}},
    }
)
_FOLLOW = """
const figure = document.getElementById("{plot_id}");
const paint = () => Plotly.relayout(figure, {template: document.body.dataset.jpThemeLight === "false" ? DARK : LIGHT});
if (document.body.dataset.jpThemeLight === "false") paint();
new MutationObserver(paint).observe(document.body, {attributeFilter: ["data-jp-theme-light"]});
"""  # an exported page has no theme: there a figure stays as it was drawn


def show_in_notebooks() -> None:
    """Figures are shown by a plotly.js in the notebook itself, which needs no network, and follow JupyterLab's theme."""
    dark, light = (json.dumps(template.to_plotly_json()) for template in (DARK, TEMPLATE))
    plotly.io.renderers["notebook"].post_script = [_FOLLOW.replace("DARK", dark).replace("LIGHT", light)]
    plotly.io.renderers.default = "notebook"


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

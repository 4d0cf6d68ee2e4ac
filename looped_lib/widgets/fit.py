"""Live figures as wide as their cell, from the first paint on.

Plotly measures its place when it draws, which a notebook does before that place has a width; after that it measures again only
when the window changes. So a widget without a face watches its own width, and says "the window changed" when that changes.
"""

import anywidget
import plotly.graph_objects as go
from ipywidgets import VBox

_WATCH = """
export default {
  render({ el }) {
    const watch = new ResizeObserver(() => window.dispatchEvent(new Event("resize")))
    watch.observe(el)
    return () => watch.disconnect()
  },
}
"""


class _Watch(anywidget.AnyWidget):
    _esm = _WATCH


def full_width(figure: go.FigureWidget) -> VBox:
    """`figure` in a box that it fills, also when the box changes."""
    figure._config = figure._config | {"responsive": True}  # FigureWidget has no public way to say so
    return VBox([_Watch(), figure])

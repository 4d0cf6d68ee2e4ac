"""A figure that changes while it is shown: as wide as its notebook from the first paint, light or dark as JupyterLab is."""

import plotly.graph_objects as go
from anywidget import AnyWidget
from ipywidgets import VBox
from traitlets import Bool

from looped_lib.core.compat import fill_width
from looped_lib.plots.style import DARK, TEMPLATE


class _Page(AnyWidget):
    """Shows nothing, and knows the page: plotly draws a figure whose cell has no place yet 700 px wide, and listens to the window
    alone, so the window's event is sent when the cell has its place, when that changes, and after each figure's first paint."""

    dark = Bool(False).tag(sync=True)
    _esm = """
    function render({ model, el }) {
      const fit = () => window.dispatchEvent(new Event("resize"));
      const look = () => {
        model.set("dark", document.body.dataset.jpThemeLight === "false");
        model.save_changes();
      };
      const place = new ResizeObserver(fit), theme = new MutationObserver(look);
      place.observe(el);
      theme.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
      document.addEventListener("plotlywidget-after-render", fit);
      look();
      return () => {
        place.disconnect();
        theme.disconnect();
        document.removeEventListener("plotlywidget-after-render", fit);
      };
    }
    export default { render };
    """


class Live(VBox):
    """`figure` is the widget to change."""

    def __init__(self, figure: go.Figure):
        self.figure, page = go.FigureWidget(figure), _Page()
        fill_width(self.figure)
        page.observe(self._paint, "dark")
        super().__init__([page, self.figure])

    def _paint(self, change: dict) -> None:
        self.figure.layout.template = DARK if change["new"] else TEMPLATE

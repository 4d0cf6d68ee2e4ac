"""The report as files: figures as SVG and PNG for a paper, the HTML page as a PDF.

Both need a Chrome or Chromium (see `browser`); NoBrowser says so if there is none, and nothing is written.
"""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import kaleido
import plotly.graph_objects as go
from choreographer.errors import BrowserFailedError

from looped_lib.core.files import replacing
from looped_lib.report.browser import FLAGS, NoBrowser, find_browser

WIDTH, HEIGHT = 900, 520  # in pixels, of a figure that is not larger; a PNG has twice as many
_FONT = 16  # across a page of 17 cm this is 9 points
_PATIENCE = 300  # seconds for a whole report on a busy machine
_DRAWING = 30_000  # milliseconds of the page's own clock, until its figures are drawn
_SCREEN = 880  # pixels the page is laid out on: A4 less its margins, at the zoom below
_PRINT = """
<style>
@page { size: A4; margin: 12mm }
@media print {
  body { zoom: 0.8; -webkit-print-color-adjust: exact }
  .js-plotly-plot, .plotly-graph-div, img, tr { break-inside: avoid }
  h1, h2, h3, h4, .jp-Cell-inputWrapper, .jp-MarkdownCell:has(:is(h1, h2, h3, h4):last-child) { break-after: avoid }
  .jp-OutputArea, .jp-OutputArea * { overflow: visible !important }
  thead { display: table-header-group }
  pre { white-space: pre-wrap !important; overflow-wrap: anywhere }
  .modebar-container, .anchor-link { display: none !important }
}
</style>
<script>
addEventListener("load", () => document.querySelectorAll("table").forEach((table) => {
  const room = table.parentElement.clientWidth
  if (table.scrollWidth > room) table.style.zoom = room / table.scrollWidth
}))
</script>
"""


def save_figures(
    figures: Mapping[str, go.Figure], folder: str | Path, kinds: Sequence[str] = ("svg", "png"), scale: int = 2
) -> list[Path]:
    """Write each figure as FOLDER/<name>.<kind>, all or none; returns the files. One browser draws them all.

    A PNG has `scale` times as many pixels as the figure is wide and high.
    """
    browser = find_browser()
    paths = [Path(folder) / f"{name}.{kind}" for name in figures for kind in kinds]
    with ExitStack() as whole:
        jobs = [_job(figures[path.stem], path.suffix[1:], whole.enter_context(replacing(path)), scale) for path in paths]
        try:
            kaleido.write_fig_from_object_sync(jobs, cancel_on_error=True, kopts={"path": browser, "mathjax": False})
        except BrowserFailedError as e:
            raise NoBrowser(f"{browser} did not start: {e.args[0]}") from None
    return paths


def save_pdf(html: str | Path, pdf: str | Path) -> None:
    """Print a page on A4: figures whole on one page, tables and code as wide as the paper."""
    browser, html = find_browser(), Path(html).resolve()
    page = html.with_name(f".{html.stem}.print.html")  # beside it, for the sake of its links
    text = html.read_text(encoding="utf-8")
    page.write_text(text.replace("</head>", f"{_PRINT}</head>", 1), encoding="utf-8")
    try:
        with replacing(pdf) as partial, tempfile.TemporaryDirectory() as profile:
            partial.unlink(missing_ok=True)
            own = [f"--user-data-dir={profile}", f"--window-size={_SCREEN},1200", f"--virtual-time-budget={_DRAWING}"]
            what = ["--no-pdf-header-footer", "--generate-pdf-document-outline", f"--print-to-pdf={partial.resolve()}"]
            command = [browser, "--headless", *FLAGS, *own, *what, page.as_uri()]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                raise NoBrowser(f"{browser} did not print the page within {_PATIENCE} s") from None
            if not partial.exists():
                raise NoBrowser(f"{browser} printed nothing (exit status {done.returncode}): {done.stderr.strip()[-500:]}")
    finally:
        page.unlink()


def _job(figure: go.Figure, kind: str, path: Path, scale: int) -> dict[str, object]:
    layout = figure.layout
    size = {"width": max(WIDTH, layout.width or 0), "height": max(HEIGHT, layout.height or 0)}
    legible = go.Figure(figure).update_layout(font_size=_FONT)
    return {"fig": legible, "path": path, "opts": {"format": kind, "scale": scale if kind == "png" else 1, **size}}

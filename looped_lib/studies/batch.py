"""Run a notebook as a batch job: papermill executes it, nbconvert makes an HTML page that opens without a server or network.

    looped-lib notebook notebooks/00_tour.ipynb runs/tour -p preset smoke

writes OUT/notebook.ipynb (also when a cell fails, with the error in it) and OUT/<notebook's name>.html, and prints the table of
accuracy by depth if the notebook wrote OUT/result.json.
"""

import argparse
import ast
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
from jinja2 import pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

from looped_lib.core.files import read_json, replacing

EXECUTED = "notebook.ipynb"  # the executed copy, in the folder of what it made
WIDGET = "application/vnd.jupyter.widget-view+json"
REMOTE_SCRIPT = re.compile(r"""<script[^>]*\ssrc=["']https?://[^>]*>\s*</script>""")
TABLE_DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 32, 50, 75, 100, 150, 200, 500, 1000, 2000, 5000, 10_000)


def execute(notebook: str | Path, out: str | Path, parameters: dict[str, Any]) -> Path:
    """Execute `notebook` with its folder as working directory; returns the executed copy, OUT/notebook.ipynb.

    ValueError on a parameter the notebook does not have (papermill itself would only warn).
    """
    notebook, out = Path(notebook).resolve(), Path(out).resolve()
    check_parameters(notebook, parameters)
    out.mkdir(parents=True, exist_ok=True)
    executed = out / EXECUTED
    with tempfile.TemporaryDirectory(prefix="looped_lib-") as sockets:
        # Not by TCP: free ports are chosen before the kernel takes them, so that runs side by side take each other's.
        by_files = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            parameters,
            kernel_name="python3",
            cwd=str(notebook.parent),
            progress_bar=True,
            store_widget_state=False,  # megabytes, for widgets that do nothing without their kernel
            config=by_files,
        )
    return executed


def check_parameters(notebook: str | Path, parameters: dict[str, Any]) -> None:
    """ValueError naming every parameter in `parameters` that `notebook` does not have, and those it has."""
    known = papermill.inspect_notebook(str(notebook))
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"{Path(notebook).name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")


class _Exporter(HTMLExporter):
    """Raw HTML in Markdown is shown as text: a run's name may hold some. Pictures travel in the page."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Overrides nbconvert's filter of this name."""
        folder = context["resources"]["metadata"]["path"]
        renderer = IPythonRenderer(
            escape=True, allow_harmful_protocols=False, embed_images=True, path=folder, anchor_link_text=self.anchor_link_text
        )
        return MarkdownWithMath(renderer=renderer).render(source)


def export_html(notebook: str | Path, html: str | Path, code: bool = True, pictures: str | Path = "") -> None:
    """Write a notebook as one HTML file that needs no network: plotly.js travels in the notebook's own outputs.

    What nbconvert and plotly would fetch is left out: MathJax and require.js (TeX stays as typed), and the progress bars,
    which are live widgets. Without `code` the page has texts and outputs alone. Pictures of Markdown cells are looked for in
    the folder `pictures` (default: the notebook's).
    """
    page = nbformat.read(notebook, 4)
    page.metadata.pop("widgets", None)
    heading = next(
        (line for cell in page.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()), "# Notebook"
    )
    page.metadata["title"] = heading.lstrip("# ")
    for cell in page.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    exporter = _Exporter(exclude_input_prompt=True, exclude_output_prompt=True, exclude_input=not code)
    body, _ = exporter.from_notebook_node(page, {"metadata": {"path": str(pictures or Path(notebook).parent)}})
    with replacing(html) as partial:
        partial.write_text(REMOTE_SCRIPT.sub("", body), encoding="utf-8")


def by_depth(results: dict[str, dict[str, Any]], max_depth: int) -> dict[str, Any]:
    """{"depths", "accuracy": {run: one value per depth}} of finished runs, at the depths up to `max_depth` that all recorded."""
    common = set.intersection(*(set(r["depths"]) for r in results.values()))
    depths = sorted(d for d in common if d <= max_depth)
    at = {name: dict(zip(r["depths"], r["accuracy"], strict=True)) for name, r in results.items()}
    return {"depths": depths, "accuracy": {name: [values[d] for d in depths] for name, values in at.items()}}


def accuracy_table(result: dict[str, Any]) -> pd.DataFrame:
    """Accuracy in percent, one row per depth of TABLE_DEPTHS, one column per run."""
    table = pd.DataFrame(result["accuracy"], index=pd.Index(result["depths"], name="loops")).mul(100).round(1)
    return table[table.index.isin(TABLE_DEPTHS)]


def parse_parameters(pairs: list[list[str]]) -> dict[str, Any]:
    """`-p NAME VALUE` pairs as {name: value}, values as by `parse_literal`."""
    return {name: parse_literal(value) for name, value in pairs}


def parse_literal(text: str) -> Any:
    """A Python literal where `text` is one, the text itself otherwise."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main(arguments: list[str]) -> None:
    """Execute, export, print."""
    parser = argparse.ArgumentParser(prog="looped-lib notebook", description="Run a notebook and export it to HTML")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path, help="folder for the executed notebook, its HTML and its results")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter")
    args = parser.parse_args(arguments)
    parameters = {"out": str(args.out.resolve()), **parse_parameters(args.p)}
    executed = execute(args.notebook, args.out, parameters)
    html = args.out / f"{args.notebook.stem.split('_', 1)[-1]}.html"
    export_html(executed, html, pictures=args.notebook.parent)
    if (args.out / "result.json").exists():
        print(accuracy_table(read_json(args.out / "result.json")).to_string())
    print(f"\nopen {html} in a browser, or {executed} in JupyterLab")

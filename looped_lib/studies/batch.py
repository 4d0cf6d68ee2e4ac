"""Run a notebook as a batch job: papermill executes it, nbconvert makes an HTML page that opens without a server or network.

    looped-lib notebook notebooks/00_tour.ipynb runs/tour -p preset smoke

writes OUT/notebook.ipynb (also when a cell fails, with the error in it) and OUT/<notebook's name>.html, and prints the table of
accuracy by depth if the notebook wrote OUT/result.json.
"""

import argparse
import ast
import os
import re
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import nbformat
import pandas as pd
import papermill
from ipykernel.kernelspec import make_ipkernel_cmd
from jinja2 import pass_context
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

from looped_lib.core.errors import work
from looped_lib.core.files import read_json, replacing
from looped_lib.core.interrupts import deferred

START_SECONDS = 600  # of patience with a kernel that starts: many at once on a shared disk take minutes
LONGEST_SOCKET_FOLDER = 107 - len("/looped_lib-12345678/kernel-5")  # the system's limit for the name of a socket
_TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool}
EXECUTED = "notebook.ipynb"  # the executed copy, in the folder of what it made
WIDGET = "application/vnd.jupyter.widget-view+json"
LINK = re.compile(r"\]\((?!\w+:|/|#)(?P<path>[^)\s]+)\)")  # of Markdown, to a file beside it
REMOTE_SCRIPT = re.compile(r"""<script[^>]*\ssrc=["']https?://[^>]*>\s*</script>""")
TABLE_DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 32, 50, 75, 100, 150, 200, 500, 1000, 2000, 5000, 10_000)


class CellError(RuntimeError):
    """A cell failed, or the kernel died in it (or before any, then `cell` is None). The executed copy holds the traceback."""

    def __init__(self, executed: Path, cell: int | None, reason: str):
        super().__init__(f"{executed}{'' if cell is None else f', cell {cell}'}: {reason}")
        self.cell, self.reason = cell, reason


class _Stopped(RuntimeError):
    """An interrupt came between two cells."""


class ThisInterpreter(AsyncKernelManager):
    """Starts kernels of the running interpreter, whatever the machine's kernelspec `python3` says."""

    made: ClassVar[WeakSet["ThisInterpreter"]] = WeakSet()

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.made.add(self)

    @classmethod
    def interrupt_all(cls) -> None:
        """What Ctrl-C is to a terminal: a kernel, in a session of its own, does not hear the terminal's."""
        for manager in cls.made:
            if manager.has_kernel:
                with suppress(ProcessLookupError):
                    os.killpg(manager.provisioner.pid, signal.SIGINT)

    @property
    def kernel_spec(self) -> KernelSpec:
        """How a kernel is started."""
        return KernelSpec(argv=make_ipkernel_cmd(), display_name="Python 3", language="python")


def execute(notebook: str | Path, out: str | Path, parameters: dict[str, Any]) -> Path:
    """Execute `notebook` with its folder as working directory; returns the executed copy, OUT/notebook.ipynb.

    ValueError on a parameter that the notebook does not have or that is of another type; CellError if a cell fails. An interrupt
    reaches the cell at work, which may save what it has, and then goes on (see `core.interrupts`).
    """
    notebook, out = Path(notebook).resolve(), Path(out).resolve()
    check_parameters(notebook, parameters)
    out.mkdir(parents=True, exist_ok=True)
    executed = out / EXECUTED
    with (
        tempfile.TemporaryDirectory(prefix="looped_lib-", dir=_socket_folder()) as sockets,
        deferred(ThisInterpreter.interrupt_all) as interrupt,
    ):

        def begin(**cell: Any) -> None:
            if interrupt.signal:
                raise _Stopped

        # Not by TCP: free ports are chosen before the kernel takes them, so that runs side by side take each other's.
        config = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        config.PapermillNotebookClient.kernel_manager_class = ThisInterpreter
        try:
            papermill.execute_notebook(
                str(notebook),
                str(executed),
                parameters,
                kernel_name="python3",
                cwd=str(notebook.parent),
                progress_bar=True,
                start_timeout=START_SECONDS,
                store_widget_state=False,  # megabytes, for widgets that do nothing without their kernel
                config=config,
                on_cell_execute=begin,
            )
        except papermill.PapermillExecutionError as e:  # its text is the whole traceback, which the notebook keeps
            if not interrupt.signal or e.ename not in ("KeyboardInterrupt", "SystemExit"):
                raise CellError(executed, e.exec_count, f"{e.ename}: {e.evalue}") from None
            interrupt.message = e.evalue if e.ename == "KeyboardInterrupt" else ""
        except (DeadKernelError, RuntimeError) as e:  # a kernel that died, or that did not start
            if not interrupt.signal:
                raise CellError(executed, _newest_cell(executed), f"{type(e).__name__}: {e}") from None
        finally:
            if executed.exists():
                _move_links(executed, notebook.parent)
    return executed


def _move_links(executed: Path, place: Path) -> None:
    """Links and pictures in the texts of the executed copy lead where they led in the folder `place` of the notebook."""

    def moved(link: re.Match) -> str:
        target = place / link["path"]
        return f"]({os.path.relpath(target, executed.parent)})" if target.exists() else link[0]

    copy = nbformat.read(executed, 4)
    for cell in copy.cells:
        texts = [(cell, "source")] if cell.cell_type == "markdown" else []
        texts += [(o.data, "text/markdown") for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {})]
        for holder, name in texts:
            holder[name] = LINK.sub(moved, holder[name])
    with replacing(executed) as partial:
        nbformat.write(copy, partial)


def _socket_folder() -> str:
    """A folder for the kernels' sockets. ValueError if the name of the temporary folder is too long for the system."""
    for folder in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER and os.access(folder, os.W_OK):
            return folder
    raise ValueError(
        f"TMPDIR: the sockets of kernels need a folder whose name has at most {LONGEST_SOCKET_FOLDER} letters, got "
        f"{tempfile.gettempdir()}"
    )


def _newest_cell(executed: Path) -> int | None:
    """Number (as in In [n]) of the last cell that had begun; None if none had."""
    if not executed.exists():
        return None
    code = [cell for cell in nbformat.read(executed, 4).cells if cell.cell_type == "code"]
    begun = [i for i, cell in enumerate(code, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return begun[-1] if begun else None


def check_parameters(notebook: str | Path, parameters: dict[str, Any]) -> None:
    """ValueError naming every parameter in `parameters` that `notebook` does not have, or one of another type."""
    known, name = parameter_types(notebook), Path(notebook).name
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    for parameter, value in parameters.items():
        if not is_of_type(value, known[parameter]):
            raise ValueError(f"{name}: {parameter} must be {known[parameter]}, got {value!r}")


def parameter_types(notebook: str | Path) -> dict[str, str]:
    """The name of the type of each parameter of a notebook. ValueError if the file is not a notebook."""
    if not Path(notebook).is_file() or Path(notebook).suffix != ".ipynb":
        raise ValueError(f"{notebook} is not a notebook (.ipynb)")
    try:
        return {name: found["inferred_type_name"] for name, found in papermill.inspect_notebook(str(notebook)).items()}
    except Exception as e:  # whatever it is, it is the file's; its text may be all of the file
        raise ValueError(f"{notebook} cannot be read ({type(e).__name__})") from None


def is_of_type(value: Any, name: str) -> bool:
    """Whether a value is of the type with that name, as notebooks write it. Any value is, of a type that is not known."""
    return name not in _TYPES or (isinstance(value, _TYPES[name]) and isinstance(value, bool) == (name == "bool"))


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


def export_html(notebook: str | Path, html: str | Path, code: bool = True) -> None:
    """Write a notebook as one HTML file that needs no network: plotly.js travels in the notebook's own outputs.

    What nbconvert and plotly would fetch is left out: MathJax and require.js (TeX stays as typed), and the progress bars,
    which are live widgets. Without `code` the page has texts and outputs alone.
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
    body, _ = exporter.from_notebook_node(page, {"metadata": {"path": str(Path(notebook).parent)}})
    with replacing(html) as partial:
        partial.write_text(REMOTE_SCRIPT.sub("", body), encoding="utf-8")


def accuracy_table(result: dict[str, Any]) -> pd.DataFrame:
    """Accuracy in percent, one row per depth of TABLE_DEPTHS, one column per run."""
    table = pd.DataFrame(result["accuracy"], index=pd.Index(result["depths"], name="loops")).mul(100).round(1)
    return table[table.index.isin(TABLE_DEPTHS)]


def parse_parameters(notebook: str | Path, pairs: list[list[str]]) -> dict[str, Any]:
    """`-p NAME VALUE` pairs as {name: value}: a text parameter takes the text as it is, any other a Python literal."""
    types = parameter_types(notebook)
    return {name: text if types.get(name) == "str" else parse_literal(text) for name, text in pairs}


def parse_literal(text: str) -> Any:
    """A Python literal where `text` is one, the text itself otherwise."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def main(arguments: list[str]) -> None:
    """Execute, export, print."""
    parser = argparse.ArgumentParser(prog="looped-lib notebook", description="Run a notebook and export it to HTML")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path, help="folder for the executed notebook, its HTML and its results")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter")
    args = parser.parse_args(arguments)
    parameters = {"out": str(args.out.resolve()), **parse_parameters(args.notebook, args.p)}
    check_parameters(args.notebook, parameters)
    with work():
        executed = execute(args.notebook, args.out, parameters)
    html = args.out / f"{args.notebook.stem.split('_', 1)[-1]}.html"
    export_html(executed, html)
    if (args.out / "result.json").exists():
        print(accuracy_table(read_json(args.out / "result.json")).to_string())
    print(f"\nopen {html} in a browser, or {executed} in JupyterLab")

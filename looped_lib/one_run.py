"""One run of a study, in a process of its own: `python -m looped_lib.one_run NOTEBOOK FOLDER PARAMETERS`.

FOLDER gets the executed notebook.ipynb, what the notebook records, and at the end sweep.json or failed.json. While the run goes
on its process holds FOLDER: another one started for the same folder waits, and finds it done.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import nbformat
import papermill

from looped_lib.files import holding, read_json, write_json
from looped_lib.gpus import one_gpu
from looped_lib.notebooks import execute

DONE, FAILED, EXECUTED = "sweep.json", "failed.json", "notebook.ipynb"


def run(notebook: Path, folder: Path, parameters: dict[str, Any]) -> None:
    """Execute the notebook with its parameters and `out` = folder, on a GPU of its own if there are any; does nothing if done."""
    with holding(folder, patience=float("inf")):
        if (folder / DONE).exists():
            return
        (folder / FAILED).unlink(missing_ok=True)
        with one_gpu():
            start = time.perf_counter()
            try:
                execute(notebook, folder, {**parameters, "out": str(folder)})
            except Exception as e:  # whatever it is, a kernel that died included, it is this run's
                write_json(folder / FAILED, {"cell": _cell(e, folder), "error": _reason(e), "parameters": parameters})
                return
        # papermill marks a notebook as ended even when its kernel died, so the end is recorded here.
        seconds = time.perf_counter() - start
        write_json(folder / DONE, {"notebook": notebook.name, "parameters": parameters, "seconds": seconds})


def failure(folder: Path) -> str:
    """What went wrong in a run's folder, in one line."""
    found = read_json(folder / FAILED)
    return found["error"] if found["cell"] is None else f"cell {found['cell']}: {found['error']}"


def _cell(e: Exception, folder: Path) -> int | None:
    """Number of the cell (as in In [n]) that failed, or was running when the kernel died; None if none had begun."""
    if isinstance(e, papermill.PapermillExecutionError):
        return e.exec_count
    if not (folder / EXECUTED).exists():
        return None
    code = [cell for cell in nbformat.read(folder / EXECUTED, 4).cells if cell.cell_type == "code"]
    begun = [i for i, cell in enumerate(code, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return begun[-1] if begun else None


def _reason(e: Exception) -> str:
    if isinstance(e, papermill.PapermillExecutionError):  # its text is the whole traceback, which the notebook keeps
        return f"{e.ename}: {e.evalue}"
    return f"{type(e).__name__}: {e}"


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("parameters", type=json.loads, help="as JSON")
    args = parser.parse_args()
    run(args.notebook, args.folder, args.parameters)


if __name__ == "__main__":
    main()

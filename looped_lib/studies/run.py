"""One run of a study, in a process of its own: `python -m looped_lib _run NOTEBOOK FOLDER PARAMETERS [--retry]`.

FOLDER gets the executed notebook.ipynb, what the notebook records, and at the end sweep.json or failed.json. While the run goes
on its process holds FOLDER: another one started for the same folder waits, and finds it done or failed.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from looped_lib.core.files import holding, read_json, write_json
from looped_lib.core.project import DONE, FAILED, STARTED
from looped_lib.studies.batch import CellError, execute
from looped_lib.studies.gpus import one_gpu


def run(notebook: Path, folder: Path, parameters: dict[str, Any], retry: bool = False) -> None:
    """Execute the notebook with its parameters and `out` = folder, on a GPU of its own if there are any.

    Does nothing if the run is done, or has failed and is not to be tried again (`retry`).
    """
    with holding(folder, patience=float("inf")):
        if (folder / DONE).exists() or ((folder / FAILED).exists() and not retry):
            return
        (folder / FAILED).unlink(missing_ok=True)
        with one_gpu():
            start = time.perf_counter()
            try:
                before = _recorded_seconds(folder)
                write_json(folder / STARTED, {"at": time.time(), "before": before})
                execute(notebook, folder, {**parameters, "out": str(folder)})
            except Exception as e:  # whatever it is, it is this run's
                cell, reason = (e.cell, e.reason) if isinstance(e, CellError) else (None, f"{type(e).__name__}: {e}")
                write_json(folder / FAILED, {"cell": cell, "error": reason})
                return
        # papermill marks a notebook as ended even when its kernel died, so the end is recorded here.
        seconds = before + time.perf_counter() - start
        write_json(folder / DONE, {"notebook": notebook.name, "parameters": parameters, "seconds": seconds})


def failure(folder: Path) -> str:
    """What went wrong in a run's folder, in one line; nothing if it has not failed."""
    try:
        found = read_json(folder / FAILED)
    except FileNotFoundError:  # not asked before: a process that tries the run again may take the file away in between
        return ""
    except ValueError as e:
        return str(e)
    if not isinstance(found, dict) or not isinstance(found.get("error"), str):
        return f"{folder / FAILED} does not say what failed"
    return found["error"] if found.get("cell") is None else f"cell {found['cell']}: {found['error']}"


def _recorded_seconds(folder: Path) -> float:
    """What the trainings and measurements in a run's folder have taken so far, over all attempts (see `runs`)."""
    seconds = 0.0
    for run in (path.parent for path in folder.glob("*/config.json")):
        if (log := run / "metrics.jsonl").exists():  # read here, because training.metrics would bring torch into this process
            whole = log.read_text(encoding="utf-8").split("\n")[:-1]
            seconds += json.loads(whole[-1])["seconds"] if whole else 0.0
        if (result := run / "result.json").exists():
            seconds += read_json(result)["seconds"]["evaluate"]
    return seconds


def main(arguments: list[str]) -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(prog="looped-lib _run", description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("parameters", type=json.loads, help="as JSON")
    parser.add_argument("--retry", action="store_true", help="also if it has failed before")
    args = parser.parse_args(arguments)
    run(args.notebook, args.folder, args.parameters, args.retry)

"""A grid of notebook runs: every combination of the given values, each in a folder of its own.

    python -m looped_lib.sweep notebooks/01_norm_placement.ipynb \\
        -p norm_placement pre_norm post_norm -p seed 0 1 2 --study norms

makes runs/norms/norm_placement=pre_norm,seed=0/ and five more. Each holds the executed notebook.ipynb, what the notebook
records and, once the notebook has run to its end, sweep.json. The same command goes on after an interruption: it skips
what is finished.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import papermill
from tqdm.auto import tqdm

from looped_lib.files import read_json, write_json
from looped_lib.notebooks import check_parameters, execute, parse_literal
from looped_lib.runs import find_root


@dataclass
class Report:
    """What became of each run of a sweep, by the run's name."""

    done: list[str] = field(default_factory=list)
    """Ran to the end now."""
    skipped: list[str] = field(default_factory=list)
    """Were finished before."""
    failed: dict[str, str] = field(default_factory=dict)
    """Did not reach the end, and why."""


def grid(values: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """The product of all values as {run name: parameters}, in the order given, the last parameter varying fastest.

    A run is named after its parameters (`norm_placement=pre_norm,seed=0`), so that equal names mean equal runs.
    ValueError if a parameter has no value, or has the same one twice.
    """
    for name, choices in values.items():
        texts = [str(choice) for choice in choices]
        if not texts or len(set(texts)) < len(texts):
            raise ValueError(f"parameter {name} needs one or more different values, got {' '.join(texts) or 'none'}")
    runs = [dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())]
    return {_name(parameters): parameters for parameters in runs}


def sweep(notebook: str | Path, values: Mapping[str, Sequence[Any]], folder: str | Path) -> Report:
    """Execute `notebook` once per combination of `values`, in `folder`/<run>/; finished runs are skipped.

    A notebook that has a parameter `out` is given the run's folder in it. A run that fails costs itself only; Ctrl-C stops
    the sweep. ValueError, before anything runs, on a parameter that the notebook does not have or that the sweep itself
    sets, and on finished runs of another notebook in the same folders.
    """
    notebook, folder = Path(notebook), Path(folder).resolve()
    if "out" in values:
        raise ValueError("out is the run's folder: the sweep sets it")
    check_parameters(notebook, dict(values))
    sets_out = "out" in papermill.inspect_notebook(str(notebook))
    runs = grid(values)
    report = Report(skipped=[name for name in runs if _finished(notebook, folder / name)])
    for name in tqdm([name for name in runs if name not in report.skipped], desc=f"sweep {folder.name}", unit="run"):
        out = {"out": str(folder / name)} if sets_out else {}
        start = time.perf_counter()
        try:
            execute(notebook, folder / name, {**runs[name], **out})
        except Exception as e:  # whatever it is, a kernel that died included, the other runs go on
            report.failed[name] = _reason(e)
            continue
        # papermill marks a notebook as ended even when its kernel died, so the end is recorded here.
        seconds = time.perf_counter() - start
        write_json(folder / name / "sweep.json", {"notebook": notebook.name, "parameters": runs[name], "seconds": seconds})
        report.done.append(name)
    return report


def _name(parameters: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={quote(str(value), safe='')}" for name, value in parameters.items())


def _finished(notebook: Path, run: Path) -> bool:
    if not (run / "sweep.json").exists():
        return False
    if (other := read_json(run / "sweep.json")["notebook"]) != notebook.name:
        raise ValueError(f"{run} is a finished run of {other}, not of {notebook.name}: choose another study")
    return True


def _reason(e: Exception) -> str:
    if isinstance(e, papermill.PapermillExecutionError):  # its text is the whole traceback, which the notebook keeps
        return f"{e.ename}: {e.evalue}"
    return f"{type(e).__name__}: {e}"


def main(argv: list[str] | None = None) -> int:
    """Sweep and report; returns the exit status, 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m looped_lib.sweep", description="Run a notebook over a grid of parameters")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("-p", nargs="+", action="append", required=True, metavar=("NAME", "VALUE"), help="a parameter's values")
    parser.add_argument("--study", required=True, help="name of the folder under runs/")
    args = parser.parse_args(argv)
    names = [name for name, *_ in args.p]
    if len(set(names)) < len(names):
        parser.error("each parameter takes one -p, with all its values")
    if Path(args.study).name != args.study:
        parser.error(f"--study is the name of one folder under runs/, got {args.study!r}")
    values = {name: [parse_literal(text) for text in texts] for name, *texts in args.p}
    try:
        report = sweep(args.notebook, values, find_root() / "runs" / args.study)
    except (OSError, ValueError) as e:
        parser.error(str(e))
    print(f"{len(report.done)} done, {len(report.skipped)} finished before, {len(report.failed)} failed")
    for name, reason in report.failed.items():
        print(f"  {name}: {reason}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())

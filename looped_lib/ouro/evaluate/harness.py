"""Accuracy of Ouro checkpoints by loop count on benchmarks, by EleutherAI's lm-eval harness.

    looped-lib evaluate EVALUATION.json OUT

EVALUATION.json is an `EvaluationConfig` (`cells` says what lands in OUT). One engine serves all tasks of a checkpoint: with
transformers at all depths from one pass over the loops, with vLLM at one depth after another, or at one if it is compiled. It is
a process of its own (`worker`): its memory is free when it ends, and a crash costs the cells it was at. A rerun measures only
what is not there, and tries again what failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from looped_lib.config import from_dict, to_dict
from looped_lib.core.errors import work
from looped_lib.core.files import holding, read_json, write_json
from looped_lib.core.quiet import LOCAL, quiet_environment
from looped_lib.ouro.evaluate.cells import Cell, EvaluationConfig, cells
from looped_lib.ouro.evaluate.checks import Checked, check
from looped_lib.ouro.evaluate.engine_log import root_cause
from looped_lib.ouro.evaluate.tables import failures, results

LOOK_EVERY = 0.2  # seconds
LOG_LINES = 15  # of a dead engine's log, in the reason of a failure


def evaluate(config: EvaluationConfig, out: str | Path, progress: bool = True) -> pd.DataFrame:
    """Measure every cell that is not there yet; returns `results(out)`. What failed is in `failures(out)`.

    Before an engine starts: ConfigError on what `check` finds, Busy if another evaluation is at work in `out`. Interrupted, it
    ends its engine; done cells stay.
    """
    out = Path(out).resolve()
    grid = list(cells(config, out))
    checked = check(config, grid)
    todo = [cell for cell in grid if not cell.result.exists()]
    if not todo:
        return results(out)
    bar = tqdm(total=len(grid), initial=len(grid) - len(todo), desc="evaluation", disable=not progress, unit="cell")
    with work(), holding(out, patience=5), bar:
        for mine in _by_engine(config, todo):
            bar.set_description(f"{mine[0].checkpoint}, {' '.join(dict.fromkeys(cell.place for cell in mine))}")
            _measure(config, checked, mine, bar)
    return results(out)


def _by_engine(config: EvaluationConfig, todo: list[Cell]) -> list[list[Cell]]:
    """The cells that one engine measures: those of a checkpoint, or of a checkpoint at a depth."""
    groups: dict[Path, list[Cell]] = {}
    for cell in todo:
        groups.setdefault(cell.folder.parent if config.one_engine else cell.folder, []).append(cell)
    return list(groups.values())


def _measure(config: EvaluationConfig, checked: Checked, todo: list[Cell], bar: tqdm) -> None:
    """Run engines until each of the cells, all of one engine, is done or has failed."""
    for cell in todo:
        cell.failure.unlink(missing_ok=True)
    while left := [cell for cell in todo if cell.open]:
        log = left[0].engine / "log.txt"
        log_starts = log.stat().st_size if log.exists() else 0
        status = _run_engine(config, checked, left, bar)
        for cell in _lost(left):
            end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
            cause = root_cause(log, log_starts)
            reason = f"the engine died ({_describe(status)})" + (f": {cause}" if cause else "") + f"; the end of {log}:\n{end}"
            write_json(cell.failure, {**cell.what, "reason": reason})
            bar.update()
    for cell in todo:
        if cell.failure.exists():
            said = f"{cell.checkpoint}, {cell.place}, {cell.task} failed: {read_json(cell.failure)['reason']}"
            bar.write(said, file=sys.stderr)


def _run_engine(config: EvaluationConfig, checked: Checked, left: list[Cell], bar: tqdm) -> int:
    """One engine over its cells; the bar moves as they land. Returns the exit status."""
    checkpoint, folder = left[0].checkpoint, left[0].engine
    spec = {"config": to_dict(config), "checkpoint": checkpoint, "cells": [(c.place, c.task) for c in left]}
    spec |= {"tasks": {c.task: checked.tasks[c.task] for c in left}, "weights": checked.weights[checkpoint]}
    write_json(folder / "spec.json", spec)
    write_json(folder / "at.json", [])
    with open(folder / "log.txt", "ab") as log:
        worker = subprocess.Popen(
            [sys.executable, "-u", "-m", "looped_lib", "_engine", str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**LOCAL, **quiet_environment(**({"HF_HUB_OFFLINE": "1"} if checked.offline else {}))},
            start_new_session=True,
        )
    before = bar.n
    try:
        while True:
            status = worker.poll()
            if landed := before + sum(not c.open for c in left) - bar.n:
                bar.update(landed)
            if status is not None:
                return status
            time.sleep(LOOK_EVERY)
    finally:  # interrupted, too: neither the engine nor what it started stays behind
        _end(worker)


def _end(worker: subprocess.Popen) -> None:
    """End a worker that still runs, and all processes of its session; also if the user interrupts once more."""
    try:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(worker.pid, signal.SIGTERM)
            worker.wait(5)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _lost(left: list[Cell]) -> list[Cell]:
    """The cells that an engine which ended left without an outcome, and that must not be tried again.

    Those are the ones it was at. It was at none if it did not even start: the others would fare no better.
    """
    at = read_json(left[0].engine / "at.json")
    return [cell for cell in left if cell.open and (not at or [cell.place, cell.task] in at)]


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"killed by {signal.Signals(-status).name}" + (", often for want of memory" if -status == signal.SIGKILL else "")


def main(arguments: list[str]) -> int:
    """Measure and print; exit status 1 if a cell failed, and then the last line names those that did."""
    parser = argparse.ArgumentParser(prog="looped-lib evaluate", description="Evaluate Ouro by loop count")
    parser.add_argument("config", type=Path, help="an EvaluationConfig as JSON")
    parser.add_argument("out", type=Path, help="folder for the results")
    args = parser.parse_args(arguments)
    config = from_dict(EvaluationConfig, read_json(args.config), str(args.config))
    table = evaluate(config, args.out)
    print(table.to_string(index=False) if len(table) else "nothing was measured", flush=True)
    failed = failures(args.out)
    names = [f"{row.model} {row.place} {row.task}" for row in failed.itertuples()]
    if names:
        print(f"error: cells that failed: {', '.join(names)} (why: above, and OUT/MODEL/.../TASK.failed.json)", file=sys.stderr)
    return 1 if names else 0

"""metrics.jsonl: one line per logged step, averaged over the steps since the line before.

Values stay tensors until a line is due, so that logging never makes a training step wait for the device.
"""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from looped_lib.core.files import naming, parse_json, replacing

LONGEST_LINE = 4096  # bytes
Line = dict[str, float]


class MetricsLog:
    """Gathers what each training step reports and appends the averages to a file, which `report` is told too.

    A resumed run first drops lines at or past its step, and a last line cut short by a kill, so that no step appears twice.
    """

    def __init__(self, path: Path, step: int, every: int, write: bool = True, report: Callable[[Line], None] = lambda line: None):
        self.path, self.write, self.report = path, write, report
        self.pending: list[tuple[int, dict[str, Tensor | float]]] = []
        self.since = time.perf_counter()
        self.summary: dict[str, Any] = {}
        self.seconds = 0.0
        if write and (kept := keep_until(path, step)):
            self.seconds = kept[-1].get("seconds", 0.0)

    def add(self, step: int, values: dict[str, Tensor | float]) -> None:
        """Remember what step number `step` (counted from 0) reported."""
        self.pending.append((step, values))

    def flush(self) -> dict[str, float] | None:
        """Write one line for the pending steps. Returns the first of them whose loss is not finite, if any."""
        if not self.pending:
            return None
        names = list(self.pending[0][1])
        table = _table([values for _, values in self.pending], names)
        now = time.perf_counter()
        elapsed, self.since = now - self.since, now
        self.seconds += elapsed
        rows = [dict(zip(names, row, strict=True)) for row in table.tolist()]
        bad = next(({"step": s, **r} for (s, _), r in zip(self.pending, rows, strict=True) if not math.isfinite(r["loss"])), None)
        loops = sum(r["n_loops"] for r in rows)
        line = {
            "step": self.pending[-1][0] + 1,
            **dict(zip(names, table.mean(0).tolist(), strict=True)),
            "loops_per_sec": loops / elapsed,
            "seconds": self.seconds,
        }
        self.pending = []
        if bad is None and self.write:
            append(self.path, line)
            self.report(line)
        self.summary = {k: f"{line[k]:.4g}" for k in ("loss", "penalty", "loops_per_sec")}
        return bad


def _table(values: list[dict[str, Tensor | float]], names: list[str]) -> Tensor:
    """[step, name] on the host, in one transfer for all values that live on a device."""
    tensors = [v[n] for v in values for n in names if isinstance(v[n], Tensor)]
    host = iter(torch.stack([t.double() for t in tensors]).tolist() if tensors else [])
    return torch.tensor([[next(host) if isinstance(v[n], Tensor) else v[n] for n in names] for v in values], dtype=torch.float64)


def append(path: Path, line: dict[str, float]) -> None:
    """Add one line to a metrics file."""
    with naming(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def keep_until(path: Path, step: int) -> list[dict[str, float]]:
    """Drop the lines past `step` of a file, if there is one: the run goes on from there. Returns those kept."""
    if not path.exists():
        return []
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    with replacing(path) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return kept


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file. A last line cut short by a kill is left out; any other bad line is a ValueError."""
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line break is a half-written line
    out: list[dict[str, float]] = []
    for number, line in enumerate(lines, start=1):
        where, remedy = f"{path}, line {number}", "delete the line or the file"
        values = parse_json(line, where, remedy)
        if not isinstance(values, dict) or not all(type(value) in (int, float) for value in values.values()):
            raise ValueError(f"{where}: must be an object of numbers; {remedy}")
        if type(values.get("step")) is not int or values["step"] <= (out[-1]["step"] if out else 0):
            raise ValueError(f"{where}: step must be a whole number above that of the line before; {remedy}")
        out.append(values)
    return out


def last_metrics(path: Path) -> dict[str, float]:
    """The last whole line of a metrics file, without reading the others; nothing if there is none, or it is damaged."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_LINE))
            lines = file.read().split(b"\n")[:-1]
        values = parse_json(lines[-1], str(path)) if lines else {}
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) and type(values.get("step")) is int else {}

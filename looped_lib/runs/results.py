"""result.json: what was found, and of which kind. Every kind is written and read here.

experiment    one model trained and measured by loop count          `runs.experiment`
experiments   several, side by side in one notebook                 notebooks 00 to 03 and 09
dynamics      spectra, rest and exits of several models             notebook 04
finetuning    one fine-tuned Ouro                                   `ouro.finetune.job`
finetunings   several, with their modes and accuracy by loop count  notebook 05
evaluation    benchmarks of Ouro checkpoints                        notebook 06
comparison    groups of runs of a study                             notebook 07
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import CONFIG, FINETUNE, RESULT

KINDS = ("experiment", "experiments", "dynamics", "finetuning", "finetunings", "evaluation", "comparison")
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)  # what contents of another shape raise
_OLDER = {  # by kind, the fields of a notebook's file that is older than the field `kind`
    "dynamics": {"gains", "loops", "runs"},
    "evaluation": {"table", "config"},
    "finetunings": {"accuracy", "problems", "preset", "seed"},
}
Result = dict[str, Any]


def write_result(folder: str | Path, kind: str, values: Result) -> Result:
    """Write `folder`/result.json of a kind in KINDS; returns its contents."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    result = {"kind": kind, **values}
    write_json(Path(folder) / RESULT, result)
    return result


def total_seconds(seconds: dict[str, float] | float) -> float:
    """Of a result's "seconds": {"train": of all attempts, "evaluate"}, or a number, as earlier fine-tunings have."""
    return sum(seconds.values()) if isinstance(seconds, dict) else seconds


def find_results(root: Path, *kinds: str) -> Iterator[tuple[Path, Result]]:
    """The files of these kinds below `root`, each with its contents. A damaged one is left out with a warning that names it."""
    for path in sorted(root.rglob(RESULT)):
        with leaving_out(path):
            result = read_json(path)
            kind = kind_of(path, result)
            if kind == "finetunings":  # files older than the field have the modes in the runs' names alone
                result.setdefault("modes", {name: name.rpartition("-seed")[0] for name in result["accuracy"]})
            if not kinds or kind in kinds:
                yield path, result


def kind_of(path: Path, result: Any) -> str:
    """The kind of a result.json: its field, or in files older than that what lies beside them, or their other fields."""
    if isinstance(result, dict) and "kind" in result:
        return str(result["kind"])
    if path.with_name(CONFIG).exists():
        return "experiment"
    if path.with_name(FINETUNE).exists():
        return "finetuning"
    return next((kind for kind, fields in _OLDER.items() if isinstance(result, dict) and fields <= set(result)), "")


@contextmanager
def leaving_out(path: Path) -> Iterator[None]:
    """An error of the block that damaged contents raise is a warning which names `path`."""
    try:
        yield
    except DAMAGED as e:
        warnings.warn(f"left out {path}: {type(e).__name__}: {e}", stacklevel=4)

"""Files that are never half there."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file to write beside `path` that takes its place when the block ends without an error.

    A reader sees the old file or the new one, never a part; a process killed in between leaves the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: str | Path, values: Any) -> None:
    """Write `values` as JSON atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=1, allow_nan=False), encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file; ValueError names the file if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: not JSON ({e}); delete it to measure again") from None

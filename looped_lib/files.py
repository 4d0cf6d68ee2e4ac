"""Files and folders that are never half there."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
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


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill beside `path` that takes its place, with all its files on the disk, when the block ends without an error.

    A process killed in between leaves `path` as it was, or none; what it had written is cleared away by the next one.
    """
    path = Path(path)
    partial = path.with_name(f".partial_{path.name}")
    for abandoned in path.parent.glob(".partial_*"):
        shutil.rmtree(abandoned)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk should not stay full of what is of no use
        raise
    if path.exists():
        shutil.rmtree(path)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: str | Path, values: Any) -> None:
    """Write `values` as JSON atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=1, allow_nan=False), encoding="utf-8")


def write_jsonl(path: str | Path, records: Iterable[Any]) -> None:
    """Write one line of JSON for each record, atomically."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file; ValueError names the file if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: not JSON ({e}); delete it to measure again") from None

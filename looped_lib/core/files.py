"""Files and folders that are never half there."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial_"  # how the name of a folder begins that is not whole
LOCK = ".lock"  # a file in a folder that one process at a time may hold


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
    partial = path.with_name(f"{PARTIAL}{path.name}")
    for abandoned in path.parent.glob(f"{PARTIAL}*"):
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


class Busy(RuntimeError):
    """Another process is at work in a folder."""


@contextmanager
def holding(folder: str | Path, patience: float = 30.0) -> Iterator[None]:
    """`folder` for this process alone, while the block runs. Busy if another process holds it for more than `patience` seconds.

    The system lets go of the lock when the process ends, however it ends. The wait is for the last breath of a process that
    was killed: a notebook's kernel outlives the process that drove it for a moment.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with open(folder / LOCK, "a") as file:  # who waits changes nothing
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Busy(f"another process is at work in {folder}: wait for it, or use another folder") from None
                time.sleep(0.1)
        yield


def held(folder: str | Path) -> bool:
    """Whether a process is at work in `folder` (see `holding`)."""
    try:
        with open(Path(folder) / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


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

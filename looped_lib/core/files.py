"""Atomic writes, JSON that says where it is wrong, and folder locks."""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PARTIAL = ".partial_"  # how the name of a folder begins that is not whole
LOCK = ".lock"  # a file in a folder that one process at a time may hold
_NUMBERS = re.compile(r"\[\n[\d\s.,eE+-]*(?:null[\d\s.,eE+-]*)*\n\s*\]")  # no text holds a bare line break: of lists alone
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what file systems without flock say


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An OSError of the block that names no file (a full disk is noticed by a write, which knows none) names `path`."""
    try:
        yield
    except OSError as e:
        if e.errno is not None and e.filename is None:
            e.filename = str(path)
        raise


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file to write beside `path` that takes its place when the block ends without an error.

    A reader sees the old file or the new one, never a part; a process killed in between leaves the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming(path):
            yield partial
            _sync(partial)
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()  # a full disk should not stay full of what is of no use
        raise


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
        with naming(path):
            yield partial
            for file in partial.rglob("*"):
                _sync(file)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # as above
        raise
    if path.exists():
        shutil.rmtree(path)
    os.replace(partial, path)
    _sync(path.parent)


class Busy(RuntimeError):
    """Another process is at work in a folder."""

    exit_status = 4  # of a command that it ends


@contextmanager
def holding(folder: str | Path, patience: float = 30.0) -> Iterator[None]:
    """`folder` for this process alone, while the block runs. Busy if another process holds it for more than `patience` seconds.

    The system lets go of the lock when the process ends, however it ends. The wait is for the last breath of a process that
    was killed: a notebook's kernel outlives the process that drove it for a moment.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with open(folder / LOCK, "a+") as file:  # who waits changes nothing
        while not lock(file):
            if time.monotonic() > deadline:
                file.seek(0)
                who = f" ({who})" if (who := file.read()) else ""
                raise Busy(f"another process is at work in {folder}{who}: wait for it, or use another folder")
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_locked(folder: str | Path) -> bool:
    """Whether a process is at work in `folder` (see `holding`)."""
    try:
        with open(Path(folder) / LOCK) as file:
            return not lock(file, shared=True)
    except FileNotFoundError:
        return False


def lock(file: IO[Any], shared: bool = False) -> bool:
    """Lock an open file until it is closed; False if another process has it locked.

    True, with a warning, where the file system knows no locks: better to work without one than not at all.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as e:
        if e.errno not in _NO_LOCKS:
            raise
        where = Path(file.name).parent
        warnings.warn(f"{where}: no locks on this file system, so see to it that one process works there", stacklevel=3)
    return True


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: str | Path, values: Any) -> None:
    """Write `values` as JSON atomically."""
    with replacing(path) as partial:
        partial.write_text(dump_json(values), encoding="utf-8")


def dump_json(values: Any) -> str:
    """`values` as JSON for people: a field in a line, and so is a list of numbers."""
    text = json.dumps(values, indent=1, allow_nan=False)
    return _NUMBERS.sub(lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text)


def write_jsonl(path: str | Path, records: Iterable[Any]) -> None:
    """Write one line of JSON for each record, atomically."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def read_json(path: str | Path, remedy: str = "") -> Any:
    """The contents of a JSON file; ValueError names the file, and the `remedy`, if it is not JSON (see `parse_json`)."""
    return parse_json(Path(path).read_bytes(), str(path), remedy)


def read_record(path: str | Path, kinds: dict[str, Any], remedy: str = "") -> dict[str, Any]:
    """A JSON file with a mapping; ValueError names the first field of `kinds` (name: type) that is missing or of another kind.

    Text that cannot be written again, half a surrogate pair, is refused too.
    """
    found, end = read_json(path, remedy), f"{'; ' if remedy else ''}{remedy}"
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must be a mapping{end}")
    if any("\ud800" <= c <= "\udfff" for c in json.dumps(found, ensure_ascii=False)):
        raise ValueError(f"{path}: has half a surrogate pair, which is no character{end}")
    for name, kind in kinds.items():
        if name not in found or isinstance(found[name], bool) or not isinstance(found[name], kind):
            raise ValueError(f"{path}: {name} must be {getattr(kind, '__name__', kind)}, got {found.get(name)!r:.80}{end}")
    return found


def parse_json(blob: bytes, where: str, remedy: str = "") -> Any:
    """JSON in UTF-8; ValueError that opens with `where` and ends with `remedy` if it is not, or gives a field twice."""
    try:
        return json.loads(blob.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as e:
        wrong = f"must be UTF-8, but byte {e.start} is {blob[e.start]:#x}"
    except RecursionError:
        wrong = "not JSON (nested too deeply)"
    except ValueError as e:  # JSONDecodeError, a number of thousands of digits, a field given twice
        wrong = f"not JSON ({e})"
    raise ValueError(f"{where}: {wrong}{'; ' if remedy else ''}{remedy}")


def read_jsonl(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of each line of a JSONL file that is not blank, `place` being for errors: `FILE, line 3`."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}, line {number}", parse_json(line, f"{path}, line {number}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is there twice: give it once")
    return found

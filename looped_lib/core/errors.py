"""How a command ends. What its user can mend is one line on stderr; a bug of the project keeps its traceback.

    error: CONFIG.json: TrainingConfig.steps must be a whole number of at least 1, got 0

A user can mend what this package says itself (a `raise` statement of its own: of ConfigError or any other ValueError,
RuntimeError, FloatingPointError or OSError), what the system says about a file (an OSError that names one), and a package that is
not installed. Everything else is a bug: a ValueError from inside a dependency, a KeyError, a conversion that failed.

Exit status: 2 if no work had begun, 1 if it had (see `work`) or on a bug, 4 if another process is at work in the folder, 130
after Ctrl-C, 143 after SIGTERM where it is waited for (see `interrupts`).
"""

import dis
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path

from looped_lib.core.interrupts import Terminated

PACKAGE = Path(__file__).resolve().parents[1]
INTERRUPTED = 130  # exit status after SIGINT, as shells have it
UNREAD = 141  # likewise after SIGPIPE
_FULL = "the disk is full: free some space, then give the same command again"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL.replace("the disk is full", "the quota is used up"),
    errno.EROFS: "the file system is read-only: give a folder that can be written",
    errno.EACCES: "no permission: give a folder of your own, or have its permissions changed",
    errno.EPERM: "not permitted: give a folder of your own, or have its permissions changed",
    errno.ENOENT: "there is no such file or folder",
}


def run(main: Callable[[list[str]], int | None], arguments: Sequence[str]) -> int:
    """Call `main` with the arguments of a command; returns its exit status, after saying what went wrong."""
    try:
        status_of_main = main(list(arguments)) or 0
        sys.stdout.flush()
        return status_of_main
    except BrokenPipeError as e:
        if e.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, `head` say, has had enough
        return UNREAD
    except (KeyboardInterrupt, Terminated, Exception) as e:
        say(e)
        return status(e)


def say(e: BaseException) -> None:
    """Print one line on stderr if the user can mend or has made `e` (an interrupt), its traceback otherwise."""
    if isinstance(e, KeyboardInterrupt | Terminated):
        print(str(e) or "interrupted: the same command goes on from what is done", file=sys.stderr)
        return
    line = mendable(e)
    print(f"error: {line}" if line is not None else "".join(traceback.format_exception(e)).rstrip(), file=sys.stderr)


def mendable(e: BaseException) -> str | None:
    """What a user can do about `e`, in one line; None if it is a bug."""
    if isinstance(e, OSError) and e.filename is not None:
        return f"{_name(e.filename)}: {_REMEDIES.get(e.errno, e.strerror)}"
    if isinstance(e, ValueError | RuntimeError | FloatingPointError | OSError) and _raised_by_this_package(e):
        return "; ".join(line.strip() for line in str(e).splitlines() if line.strip())
    package = (getattr(e, "name", None) or "").partition(".")[0]
    if isinstance(e, ModuleNotFoundError) and package and util.find_spec(package) is None:
        return f"this needs the package {package}, which is not installed: pip install {_extra(package)}"
    return None


def status(e: BaseException) -> int:
    """Exit status of a command that `e` ended."""
    if isinstance(e, KeyboardInterrupt | Terminated):
        return INTERRUPTED if isinstance(e, KeyboardInterrupt) else e.code
    return getattr(e, "exit_status", 2) if mendable(e) is not None else 1


@contextmanager
def work() -> Iterator[None]:
    """The work of a command: an error that leaves the block gives exit status 1 instead of 2."""
    try:
        yield
    except Exception as e:
        if not hasattr(e, "exit_status"):
            e.exit_status = 1
        raise


def _extra(package: str) -> str:
    """What brings a package: the first extra of this library that asks for it by name, otherwise the package itself."""
    try:
        asked = metadata.requires("looped_lib") or []
    except metadata.PackageNotFoundError:  # a plain copy of the files
        asked = []
    named = re.compile(rf"(py)?{package.replace('_', '[-_]')}\b(?!-).*extra == \W(?P<extra>[\w-]+)", re.I)
    return next((f'"looped_lib[{found["extra"]}]"' for line in asked if (found := named.match(line))), package)


def _name(file: str | bytes | int) -> str:
    return file.decode(errors="replace") if isinstance(file, bytes) else str(file)


def _raised_by_this_package(e: BaseException) -> bool:
    """Whether a `raise` statement of this package raised `e`, and not a call that failed in it or below it."""
    frame = e.__traceback__
    if frame is None or isinstance(e, NotImplementedError):
        return False
    while frame.tb_next is not None:
        frame = frame.tb_next
    code = frame.tb_frame.f_code
    return PACKAGE in Path(code.co_filename).resolve().parents and code.co_code[frame.tb_lasti] == dis.opmap["RAISE_VARARGS"]

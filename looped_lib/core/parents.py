"""Processes that end with the one that started them: an orphan would go on writing where a new job starts, or wait for ever."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable

_LOOK_EVERY = 1.0  # seconds


def end_with_parent(end: Callable[[], None]) -> None:
    """From now on, call `end` as soon as the process that started this one has ended."""
    _watch(os.getppid(), end)


def end_with_torchrun() -> None:
    """From now on, a worker of torchrun is killed as soon as its torchrun has ended. Does nothing outside of one.

    To be called first of all: a torchrun that ended before is known by its store only, and only where that is its own.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not _answers(os.environ):
        _kill()
    _watch(parent, _kill)


def _watch(parent: int, end: Callable[[], None]) -> None:
    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY)
        end()

    threading.Thread(target=look, daemon=True).start()


def _answers(environment: dict[str, str]) -> bool:
    """Whether the store by which the workers find each other takes connections."""
    try:
        socket.create_connection((environment["MASTER_ADDR"], int(environment["MASTER_PORT"])), timeout=30).close()
    except ConnectionRefusedError:
        return False
    except OSError:  # slow, or a name not known yet: not the sign of a torchrun that has ended
        return True
    return True


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

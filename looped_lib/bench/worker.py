"""Processes that repeat things on request, so that two forms can take turns without sharing an allocator or a cache.

`keep_freed_memory` is process-wide: in one process the baseline would profit from it too.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Calls = dict[str, Callable[[], Any]]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
PATIENCE = 20  # seconds, with a process that is to end


class Worker:
    """Makes `make(*args)` once, in a process of its own: named calls, which `seconds` then times one at a time.

    `environment` holds variables that are set there first. As a context manager it ends its process. RuntimeError if the
    process dies; its traceback is on stderr.
    """

    def __init__(self, make: Callable[..., Calls], *args: Any, environment: dict[str, str] | None = None):
        context = multiprocessing.get_context("spawn")  # a forked child would inherit the allocator's settings
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, environment or {}, make, args), daemon=True)
        self._process.start()
        theirs.close()

    def seconds(self, name: str) -> float:
        """Wall-clock seconds of one more call of `name`."""
        return self._ask(name, "seconds")

    def result(self, name: str) -> Any:
        """What one more call of `name` returns."""
        return self._ask(name, "result")

    def _ask(self, name: str, wanted: str) -> Any:
        try:
            self._connection.send((name, wanted))
            return self._connection.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError(f"the process that timed {name!r} has ended; its error stands above") from None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(PATIENCE)
        self._process.kill()  # what has used gloo may never end by itself
        self._process.join()


def median_seconds(calls: list[tuple[Worker, str]], repeats: int) -> list[float]:
    """Median time of each call. They take turns, so that a slow minute of the machine slows all of them.

    A first turn is not counted: it pays for memory and for state that is built when it is first needed.
    """
    turns = [[worker.seconds(name) for worker, name in calls] for _ in range(1 + repeats)]
    return [statistics.median(times) for times in zip(*turns[1:], strict=True)]


def _serve(connection: Connection, environment: dict[str, str], make: Callable[..., Calls], args: tuple[Any, ...]) -> None:
    os.environ |= environment
    calls = make(*args)
    while True:
        try:
            name, wanted = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        result = calls[name]()
        seconds = time.perf_counter() - start
        connection.send(result if wanted == "result" else seconds)

"""Interrupts that wait for the end of a step: Ctrl-C, a notebook's stop button (SIGINT), and SIGTERM, as from a scheduler.

    with deferred() as interrupt:
        while work is left:
            do a step
            if interrupt.signal:
                break
        save
        interrupt.message = "stopped at step 41"
    # here the interrupt goes on: KeyboardInterrupt, or Terminated, a SystemExit with status 143

A step that is broken off leaves weights, moments and counters that do not belong together. So the first signal is only noted.
A second one acts at once, as it would have without this.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME = 2.0  # seconds in which a second signal is taken for the first: see `deferred`


@dataclass
class Interrupt:
    """What a block has been told."""

    signal: int = 0
    """Number of the signal that came, 0 before it. A process of several may be told by another one: set it then."""
    message: str = ""
    """What the exception is to say: where the work stopped."""


class Terminated(SystemExit):
    """SIGTERM, going on: status 143. As a text it is the message."""

    def __init__(self, message: str):
        super().__init__(128 + signal.SIGTERM)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextmanager
def deferred(told: Callable[[], None] = lambda: None) -> Iterator[Interrupt]:
    """Note an interrupt while the block runs, call `told`, and let it go on when the block ends without an error.

    A scheduler tells all processes, and torchrun or the process that drives a notebook tells its own once more. So for a moment
    a signal of the other kind, and in a worker of torchrun any, is the same interrupt.

    It goes on to a handler that was there before, and ends in KeyboardInterrupt (SIGINT) or Terminated (SIGTERM). Outside the
    main thread, where Python allows no handlers, nothing is deferred: interrupts reach the main thread as ever.
    """
    interrupt, before = Interrupt(), {}
    repeats_until = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal repeats_until
        if not interrupt.signal:
            interrupt.signal = number
            repeats_until = time.monotonic() + _SAME
            told()
        elif time.monotonic() > repeats_until or (number == interrupt.signal and "TORCHELASTIC_RUN_ID" not in os.environ):
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        # One that the process ignores, as a shell's background jobs do, or that is not Python's, stays as it is.
        before |= {s: h for s in SIGNALS if (h := signal.getsignal(s)) not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, note)
        yield interrupt
    finally:
        restore()
    if interrupt.signal:
        if before.get(interrupt.signal) not in (None, signal.SIG_DFL, signal.default_int_handler):
            signal.raise_signal(interrupt.signal)
        raise (KeyboardInterrupt if interrupt.signal == signal.SIGINT else Terminated)(interrupt.message)

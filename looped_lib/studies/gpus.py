"""One GPU for one process, on a machine that several processes share."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from urllib.parse import quote

from looped_lib.core.files import lock


def named() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES names: numbers, or UUIDs of GPUs or of parts of one; None if it is not set."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return None
    names = takewhile(lambda name: name != "-1", (name.strip() for name in named.split(",")))  # which ends CUDA's list
    return [name for name in names if name]


def visible() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; CUDA is not started."""
    if (names := named()) is not None:
        return names
    import torch  # here, because the process of a run that is told its GPUs has no other use for it

    return [str(i) for i in range(torch.cuda.device_count())]


@contextmanager
def one_gpu() -> Iterator[str | None]:
    """Processes started in the block see one GPU that no other such block of this user on this machine has; None without GPUs.

    Waits until one is free. The claim is a locked file, which the system unlocks when the process ends, however it ends.
    """
    gpus, before = visible(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not gpus:
        yield None
        return
    while True:
        for gpu in gpus:
            with open(Path(tempfile.gettempdir()) / f"looped_lib-{os.getuid()}-gpu-{quote(gpu, safe='')}.lock", "a") as claim:
                if not lock(claim):
                    continue
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                try:
                    yield gpu
                finally:
                    os.environ.pop("CUDA_VISIBLE_DEVICES")
                    if before is not None:
                        os.environ["CUDA_VISIBLE_DEVICES"] = before
                return
        time.sleep(1.0)

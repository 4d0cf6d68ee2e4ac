"""One GPU for one process, on a machine that several processes share."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def visible() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; CUDA is not started."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    import torch  # here, because the process of a run that is told its GPUs has no other use for it

    return [str(i) for i in range(torch.cuda.device_count())]


@contextmanager
def one_gpu() -> Iterator[str | None]:
    """Processes started in the block see one GPU that no other such block on this machine has; None without GPUs.

    Waits until one is free. The claim is a locked file, which the system unlocks when the process ends, however it ends.
    """
    gpus, before = visible(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not gpus:
        yield None
        return
    while True:
        for gpu in gpus:
            with open(Path(tempfile.gettempdir()) / f"looped_lib-gpu-{gpu}.lock", "a") as claim:
                try:
                    fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
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

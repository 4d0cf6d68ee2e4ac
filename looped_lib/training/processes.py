"""The processes of one torchrun job, as the training loop sees them. Without torchrun there is one."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from looped_lib.core import compat, errors
from looped_lib.core.interrupts import Terminated

PATIENCE = timedelta(hours=2)  # with the first process, while it prepares data or writes; one that ends is noticed at once


@dataclass(frozen=True)
class Processes:
    """This process's number, how many there are, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def from_environment(cls) -> "Processes":
        """As torchrun's environment variables say: one GPU per process where there are GPUs, the CPU otherwise."""
        local = int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def gather(self, mine: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all processes, on the host. Names must differ between processes; all must call."""
        if self.world == 1:
            return mine
        everyone: list[dict[str, Tensor]] = [{} for _ in range(self.world)]
        dist.all_gather_object(everyone, {name: t.cpu() for name, t in mine.items()})
        return {name: t for tensors in everyone for name, t in tensors.items()}

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


class Agreement:
    """Small numbers that all processes agree on between two steps.

    They travel between the hosts, beside what the GPUs do: nobody waits for a GPU, and one process alone for nothing.
    """

    def __init__(self, world: int):
        self.world = world
        self.group = dist.new_group(backend="gloo") if world > 1 and dist.get_backend() != "gloo" else None  # None: the whole job

    def greatest(self, mine: int) -> int:
        """The greatest number that a process gave. All must call."""
        if self.world == 1:
            return mine
        number = torch.tensor([mine])
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self.group)
        return int(number)


def leave(status: int = 0) -> None:
    """End this process of a torchrun job here and now; does nothing outside of one.

    Not by returning: the destructor of DDP's reducer, which holds the interpreter's lock, joins a thread of gloo's that may be
    waiting for that lock to let go of a tensor, and then neither ever ends (seen with torch 2.13).
    """
    if "WORLD_SIZE" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the torchrun job this process belongs to, if any: nccl between GPUs, gloo otherwise."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def run_job(job: Callable[[], Any]) -> None:
    """Run `job` in each process of a torchrun job, or here alone: the whole of a command, its errors included.

    Of the processes that fail, the first to do so says why (see `errors`). What `job` returns lives until the process ends.
    """
    if "WORLD_SIZE" not in os.environ:
        job()
        return
    with process_group():
        try:
            kept = job()  # noqa: F841  DDP must outlive `leave`
        except (KeyboardInterrupt, Terminated, Exception) as e:
            mine = f"{dist.get_rank()} {errors.status(e)}"
            first = compat.process_store().compare_set("failed", "", mine).decode()
            if first == mine:  # the others only lost this one, and end as it does
                if isinstance(e, Exception) and errors.mendable(e) is None:
                    get_error_handler().record_exception(e)  # for torchrun's own report
                errors.say(e)
            leave(int(first.split()[1]))
        dist.barrier()
    leave()

"""What there is to compute on: the GPUs that CUDA would show to a process, or the cores. CUDA is not started in this one."""

import math
import re
import shutil
import subprocess
import time
from dataclasses import dataclass

import psutil
import torch

from looped_lib.ouro.model import costs
from looped_lib.studies import gpus

GOAL_MFU = 0.45  # of a GPU's stated peak: what the time is estimated with
UNKNOWN_PEAK = 100e12  # FLOP/s of a GPU that `costs` does not know
_SLICE = re.compile(r"MIG (?:(\d+)c\.)?(\d+)g\.(\d+)gb")  # the profile of a part of a GPU: compute and memory


@dataclass(frozen=True, repr=False)
class Machine:
    """What there is to compute on."""

    device: str
    """Name of the GPU, or of the CPU."""
    count: int
    """GPUs, or CPU cores."""
    memory: float
    """Bytes of each GPU (of the smallest, if they differ), or of the machine. NaN if the GPU does not say."""
    flops: float
    """FLOP/s to count on for each: a share of a GPU's stated peak, or measured on one core."""
    is_gpu: bool
    """Whether it is."""

    def __repr__(self) -> str:
        what = ("GPU" if self.is_gpu else "core") + "s" * (self.count != 1)
        return f"{self.device}: {self.count} {what}, {self.memory / 2**30:.0f} GiB, {self.flops:.2g} FLOP/s each"


@dataclass(frozen=True)
class _Gpu:
    name: str
    memory: float
    share: float = 1.0  # of the GPU's multiprocessors
    names: tuple[str, ...] = ()  # how CUDA_VISIBLE_DEVICES may name it


def machine() -> Machine:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, as nvidia-smi describes them, or else the cores of this machine."""
    found = _visible(_listed())
    if found:
        worst = min(found, key=lambda gpu: (not math.isnan(gpu.memory), gpu.memory, gpu.share))
        peak = next((p for key, p in costs.PEAK_FLOPS.items() if key in worst.name), UNKNOWN_PEAK)
        return Machine(worst.name, len(found), worst.memory, GOAL_MFU * peak * worst.share, True)
    cores = psutil.cpu_count(logical=False) or 1
    return Machine("CPU", cores, float(psutil.virtual_memory().total), _gemm_flops(), False)


def default_processes(found: Machine) -> int:
    """One process per GPU, or two on a CPU, which is enough to run what several processes run."""
    return found.count if found.is_gpu else min(2, found.count)


def _visible(listed: list[_Gpu]) -> list[_Gpu]:
    """Those of `listed` that CUDA would show. A name that is none of them ends its list."""
    if (names := gpus.named()) is None:
        whole = [gpu for gpu in listed if gpu.share == 1]
        return whole or listed[:1]  # of GPUs that are all split, CUDA shows one part if it is not told which
    found = []
    for name in names:
        matching = [gpu for gpu in listed if any(n == name if n.isdigit() else n.startswith(name) for n in gpu.names)]
        if not matching:
            break
        found.append(matching[0])
    return found


def _listed() -> list[_Gpu]:
    """Every GPU of the machine, and in the place of a split one its parts."""
    if not shutil.which("nvidia-smi"):
        return []
    table = _ask("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    uuids, parts = _tree(_ask("-L"))
    listed = []
    for i, line in enumerate(table):
        name, _, mebibytes = line.rpartition(", ")
        memory = float(mebibytes) * 2**20 if mebibytes.isdigit() else math.nan
        listed += parts.get(i) or [_Gpu(name, memory, names=(str(i), *uuids.get(i, ())))]
    return listed


def _tree(lines: list[str]) -> tuple[dict[int, tuple[str, ...]], dict[int, list[_Gpu]]]:
    """UUIDs and parts of each GPU by number, from the lines of `nvidia-smi -L`."""
    uuids: dict[int, tuple[str, ...]] = {}
    parts: dict[int, list[_Gpu]] = {}
    number, name = -1, ""
    for line in lines:
        uuid = re.search(r"UUID: ([^)\s]+)", line)
        if gpu := re.match(r"GPU (\d+): (.*?) \(UUID", line):
            number, name = int(gpu[1]), gpu[2]
            uuids[number] = (uuid[1],)
        elif uuid and (profile := _SLICE.search(line)):
            share = int(profile[1] or profile[2]) / 7
            parts.setdefault(number, []).append(_Gpu(f"{name} {profile[0]}", 1e9 * int(profile[3]), share, (uuid[1],)))
    return uuids, parts


def _ask(*question: str) -> list[str]:
    """The lines that nvidia-smi answers with; none if it fails, as it does without a driver."""
    done = subprocess.run(["nvidia-smi", *question], capture_output=True, text=True)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _gemm_flops() -> float:
    """Float32 matrix products of one core, in FLOP/s."""
    threads, n = torch.get_num_threads(), 512
    a = torch.ones(n, n)
    torch.set_num_threads(1)
    try:
        a @ a
        start = time.perf_counter()
        for _ in range(5):
            a @ a
        seconds = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    return 5 * 2 * n**3 / seconds

"""What a fine-tuning run will need, before it starts: machines found, memory, FLOPs and time, from its config alone."""

import math
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import psutil
import torch

from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.ouro.finetune.data import load_rows
from looped_lib.ouro.model import costs
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.samplers import LoopSampler

GOAL_MFU = 0.45  # of a GPU's stated peak: what the time is estimated with
GIB = 2.0**30


@dataclass(frozen=True)
class Machine:
    """What there is to compute on."""

    device: str
    """Name of the GPU, or of the CPU."""
    count: int
    """GPUs, or CPU cores."""
    memory: float
    """Bytes of each GPU, or of the machine."""
    flops: float
    """FLOP/s to count on for each: a share of a GPU's stated peak, or measured on one core."""
    is_gpu: bool
    """Whether it is."""


def machine() -> Machine:
    """The GPUs of this machine (asked of nvidia-smi: CUDA is not started in this process), or else its cores."""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        found = subprocess.run(query, capture_output=True, text=True)
        gpus = [line.rsplit(", ", 1) for line in found.stdout.strip().splitlines()] if found.returncode == 0 else []
        if gpus:
            name, mebibytes = gpus[0]
            peak = next((p for key, p in costs.PEAK_FLOPS.items() if key in name), 100e12)
            return Machine(name, len(gpus), float(mebibytes) * 2**20, GOAL_MFU * peak, True)
    cores = psutil.cpu_count(logical=False) or 1
    return Machine("CPU", cores, float(psutil.virtual_memory().total), _gemm_flops(), False)


def default_processes(found: Machine) -> int:
    """One process per GPU, or two on a CPU, which is enough to run what several processes run."""
    return found.count if found.is_gpu else min(2, found.count)


def plan(configs: dict[str, FinetuneConfig], architecture: OuroConfig, processes: int, found: Machine) -> pd.DataFrame:
    """One row per run: updates, depth, memory a process needs at the deepest draw, minutes. Upper bounds: rows of full length.

    Time counts FLOPs at `found.flops`, and the work that MFU leaves out: recomputed, a loop costs 4 forward loops, not 3, and
    a penalty 6 more (two loops with their gradients).
    """
    table = {name: _row(config, architecture, processes, found) for name, config in configs.items()}
    return pd.DataFrame(table).T.rename_axis("run")


def _row(config: FinetuneConfig, architecture: OuroConfig, processes: int, found: Machine) -> dict[str, object]:
    c, seq = config.updates, config.data.max_len
    updates = c.steps or math.ceil((config.data.max_rows or len(load_rows(config.data))) / c.batch_size)
    loops = config.loops.mean() * (4 / 3 if c.gradient_checkpointing else 1) + (
        2 * config.penalty.share if config.penalty.weight else 0
    )
    flops = updates * c.batch_size * seq * costs.training_flops(architecture, loops, seq)
    memory = costs.training_memory(
        architecture,
        int(config.loops.support[-1]),
        c.micro_batch,
        seq,
        bf16=c.precision == "bf16",
        checkpointing=c.gradient_checkpointing,
        shards=processes if c.parallel == "fsdp2" else 1,
    )
    available = found.memory / (1 if found.is_gpu else processes)
    return {
        "loops": _describe(config.loops),
        "penalty weight": config.penalty.weight,
        "updates": updates,
        "rows per update": c.batch_size,
        "memory needed, GiB": round(memory.total / GIB, 2),
        "of, GiB": round(available / GIB, 1),
        "fits": memory.total < available,
        "minutes, at most": round(flops / (processes * found.flops) / 60, 1),
    }


def spent(metrics: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What the runs took, to compare with the plan: one row per run, from its `Job.metrics`."""
    table = {
        name: {
            "minutes": round(float((m.seconds_per_update * m.step.diff().fillna(m.step)).sum()) / 60, 1),
            "tokens per second": round(m.tokens_per_sec.median()),
            "GFLOP/s": round(m.flops_per_sec.median() / 1e9, 1),
            **({"MFU": round(m.mfu.median(), 3)} if "mfu" in m else {}),
            "memory held, GiB": round(m.memory_bytes.max() / GIB, 2),
        }
        for name, m in metrics.items()
    }
    return pd.DataFrame(table).T.rename_axis("run")


def _describe(loops: LoopSampler) -> str:
    if len(loops.support) == 1:
        return str(loops.support[0])
    return f"{loops.support[0]} to {loops.support[-1]}, mean {loops.mean():.1f}"


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

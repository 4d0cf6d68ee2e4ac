"""What a fine-tuning run will need, before it starts: updates, memory, FLOPs and time, from its config and its data."""

import math
from collections.abc import Mapping

import pandas as pd

from looped_lib.ouro.finetune.config import ChatDataConfig, FinetuneConfig, updates_of
from looped_lib.ouro.finetune.machine import Machine
from looped_lib.ouro.finetune.machine import default_processes as default_processes  # a plan is made for a machine
from looped_lib.ouro.finetune.machine import machine as machine
from looped_lib.ouro.finetune.rows import load_rows, on_hub
from looped_lib.ouro.model import costs
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.samplers import LoopSampler

GIB = 2.0**30
# What a process holds before it computes: Python and its libraries (measured: 0.63 GiB), or else CUDA's context, about as much
PROCESS = 0.75 * GIB
SLACK = 1.1  # of memory: what allocators cannot use


def plan(configs: dict[str, FinetuneConfig], architecture: OuroConfig, processes: int, found: Machine) -> pd.DataFrame:
    """One row per run: rows, updates, depth, memory a process needs at the deepest draw, minutes. The last two are upper bounds,
    with rows of full length.

    Rows are counted where they are on this machine; of a dataset of the hub, which a plan does not fetch, they are at most
    `max_rows`. Time counts FLOPs at `found.flops`, and the work that MFU leaves out: recomputed, a loop costs 4 forward loops,
    not 3, and a penalty 6 more (two loops with their gradients).
    """
    counted: dict[ChatDataConfig, int] = {}
    table = {name: _row(config, architecture, processes, found, counted) for name, config in configs.items()}
    return pd.DataFrame(table).T.rename_axis("run")


def _row(
    config: FinetuneConfig, architecture: OuroConfig, processes: int, found: Machine, counted: dict[ChatDataConfig, int]
) -> dict[str, object]:
    c, seq, rows = config.updates, config.data.max_len, config.data.max_rows
    known = rows == 0 or not on_hub(config.data)
    if known:
        if config.data not in counted:
            counted[config.data] = len(load_rows(config.data, config.seed).dataset)
        rows = counted[config.data]
    updates = updates_of(c, rows)
    loops = config.loops.mean() * (4 / 3 if c.gradient_checkpointing else 1) + (
        2 * config.penalty.share if config.penalty.weight else 0
    )
    flops = updates * c.batch_size * seq * costs.training_flops(architecture, loops, seq)
    needed = _memory(config, architecture, processes, found)
    available = found.memory / (1 if found.is_gpu else processes)
    return {
        "loops": _describe(config.loops),
        "penalty weight": config.penalty.weight,
        "rows": f"{rows:,}" if known else f"at most {rows:,}",
        "epochs": f"{'' if known else 'at least '}{updates * c.batch_size / rows:.2g}",
        "updates": updates,
        "rows per update": c.batch_size,
        "memory needed, GiB": round(needed / GIB, 2),
        "of, GiB": round(available / GIB, 1),
        "fits": "not known" if math.isnan(available) else needed < available,
        "minutes, at most": round(flops / (processes * found.flops) / 60, 1),
    }


def _memory(config: FinetuneConfig, architecture: OuroConfig, processes: int, found: Machine) -> float:
    """Bytes that a process holds at the deepest draw, at most."""
    c = config.updates
    memory = costs.training_memory(
        architecture,
        int(config.loops.support[-1]),
        c.micro_batch,
        config.data.max_len,
        bf16=c.precision == "bf16",
        checkpointing=c.gradient_checkpointing,
        shards=processes if c.parallel == "fsdp2" else 1,
        buckets=c.parallel == "ddp" and processes > 1,
        penalty=config.penalty.weight > 0,
        on_cpu=not found.is_gpu,
    )
    return PROCESS + SLACK * memory.total


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

"""What a training costs: FLOPs of its matrix products and convolutions (a multiply-add is two), counted operator by operator.

They are those that PyTorch executes, which for a JVP includes products with the zero tangent of each weight. Attention is counted
as its two products.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import flop_registry

from looped_lib.config import ExperimentConfig, PenaltyConfig
from looped_lib.core import compat
from looped_lib.samplers import FixedLoops
from looped_lib.training.trainer import Trainer

ROWS = 16  # of the counted batch; all terms of a step are proportional to it


def overhead(config: ExperimentConfig) -> float:
    """(FLOPs with the penalty - FLOPs without) / FLOPs without, of a step at the mean loop count, once the penalty has begun."""
    return step_flops(config, config.loops.mean()) / step_flops(_without_penalty(config), config.loops.mean()) - 1


def training_flops(config: ExperimentConfig) -> float:
    """FLOPs of the whole training: every step at the loop count it draws, the penalty from its onset on.

    With one loop count per sequence all run to the largest of the batch.
    """
    t = config.training
    size = t.batch_size if t.per_sequence_loops else None
    deepest = np.array([np.max(config.loops.sample(config.seed, step, size)) for step in range(t.steps)])
    on = np.arange(t.steps) >= config.penalty.onset
    parts = ((config, deepest[on]), (_without_penalty(config), deepest[~on]))
    return sum(step_flops(c, n) * np.sum(steps == n) for c, steps in parts for n in np.unique(steps)) * t.batch_size / ROWS


def step_flops(config: ExperimentConfig, loops: float) -> float:
    """FLOPs of a step of ROWS sequences, with the penalty.

    Every loop costs the same, less where it is outside the gradient: two straight lines, which three counts give.
    """
    truncated = config.training.backprop_loops
    full = replace(config, training=replace(config.training, backprop_loops=0))
    one, two = _counted(full, 1), _counted(full, 2)
    within = min(loops, truncated or loops)
    flops = one + (two - one) * (within - 1)
    return flops + (loops - within) * (_counted(config, truncated + 1) - flops) if loops > within else flops


def _without_penalty(config: ExperimentConfig) -> ExperimentConfig:
    return replace(config, penalty=PenaltyConfig())


@cache
def _counted(config: ExperimentConfig, loops: int) -> int:
    small = replace(
        config,
        loops=FixedLoops(loops),
        penalty=replace(config.penalty, onset=0),
        training=replace(config.training, batch_size=ROWS, accumulation=1, per_sequence_loops=False),
        data=replace(config.data, n_train=ROWS, n_test=1, train_file="", test_file=""),
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), sdpa_kernel(SDPBackend.MATH):
        trainer = Trainer(small)
        trainer.model.train()
        with _Count() as counted:
            trainer.train_step()
    return counted.flops


class _Count(compat.dispatch_mode()):
    """torch's FlopCounterMode without its record of modules, which refuses gradients of a leaf: a penalty takes those."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (operator := compat.operator(func)) in flop_registry:
            self.flops += flop_registry[operator](*args, **(kwargs or {}), out_val=out)
        return out

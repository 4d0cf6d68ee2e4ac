"""What a penalty costs: FLOPs of one optimiser step with it over those without, counted operator by operator."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from looped_lib.config import ExperimentConfig, PenaltyConfig
from looped_lib.samplers import FixedLoops
from looped_lib.training import Trainer

ROWS = 16  # of the counted batch; all terms of a step are proportional to it


def overhead(config: ExperimentConfig) -> float:
    """(FLOPs with the penalty - FLOPs without) / FLOPs without, on average over loop counts, once the penalty has begun."""
    return step_flops(config) / step_flops(replace(config, penalty=PenaltyConfig())) - 1


def step_flops(config: ExperimentConfig) -> float:
    """FLOPs (matrix products and convolutions; a multiply-add is two) of a step of ROWS sequences, on average over loop counts.

    Every loop costs the same, so that FLOPs are affine in the loop count and two counts give their mean.
    """
    one, two = _counted(replace(config, loops=FixedLoops(1))), _counted(replace(config, loops=FixedLoops(2)))
    return one + (two - one) * (config.loops.mean() - 1)


@cache
def _counted(config: ExperimentConfig) -> int:
    training = replace(config.training, batch_size=ROWS, accumulation=1)
    small = replace(
        config,
        penalty=replace(config.penalty, onset=0),
        training=training,
        data=replace(config.data, n_train=ROWS, train_file="", test_file=""),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(small, Path(folder), progress=False)
        trainer.model.train()
        with _Count() as counted:
            trainer.train_step()
    return counted.flops


class _Count(TorchDispatchMode):
    """torch's FlopCounterMode without its record of modules, which refuses gradients of a leaf: a penalty takes those."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out

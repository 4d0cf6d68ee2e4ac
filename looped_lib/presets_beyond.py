"""The experiments beyond the paper, as functions from a preset's name (see `sizes`) to {run name: ExperimentConfig}."""

from dataclasses import replace

from looped_lib.config import CarryConfig, PenaltyConfig
from looped_lib.sizes import Configs, base, loops

_LEARNED = {"smoke": 3, "cpu": 700, "paper": 5000}  # step from which a model of each size knows the task


def recipes(preset: str, seed: int = 0) -> Configs:
    """Candidates for the cheapest training that holds the accuracy at every depth, without the seed in their names.

    random        random loops
    carry         and, once the task is learned, batches half of which carry on from deep states (see `carry`)
    stars_carry   and the Jacobian penalty

    In the small presets loops are uniform; runs/LOG.md tells how their numbers were chosen.
    """
    experiment = base(preset, seed)
    random = replace(experiment, loops=loops(preset, "log_normal" if preset == "paper" else "uniform"))
    carry = CarryConfig(share=0.5, max_loops=200, onset=_LEARNED[preset])
    penalty = PenaltyConfig(weight=0.01, onset=_LEARNED[preset])
    return {
        "random": random,
        "carry": replace(random, carry=carry),
        "stars_carry": replace(random, penalty=penalty, carry=carry),
    }

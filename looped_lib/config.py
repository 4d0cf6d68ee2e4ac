"""Everything that defines an experiment, as frozen dataclasses that check themselves.

    ExperimentConfig
      model     Model             what is looped: ModelConfig, the small transformer, or a model of one's own
      loops     LoopSampler       how often, in training
      penalty   PenaltyConfig     how stable: the Jacobian penalty (weight 0 turns it off)
      terms     Penalty           what else is added to the loss, by name
      carry     CarryConfig       training that starts from deep states (share 0 turns it off)
      data      Task              which problems: Addition, or a task of one's own
      training  TrainingConfig    optimiser, schedule, precision, checkpoints
      start     StartConfig       where the weights come from: the seed, or another run

Every value lives in one place. A wrong value or an unknown field is an error that names the field and says what
would be right; a missing one takes its default. `to_dict` and `from_dict` go through JSON without loss.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from looped_lib.core import checks
from looped_lib.core.checks import ConfigError
from looped_lib.core.dicts import differences, from_dict, to_dict
from looped_lib.models.config import Model, ModelConfig
from looped_lib.regularizers import Penalty, PenaltyConfig
from looped_lib.samplers import FixedLoops, LoopSampler
from looped_lib.tasks.addition import Addition
from looped_lib.tasks.task import Task

__all__ = ["differences", "from_dict", "to_dict"]  # configs are read and written with them

Precision = Literal["fp32", "tf32", "bf16"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Kept = Literal["weights", "training"]
LOGGED = ("step", "loss", "ce", "penalty", "grad_norm", "lr", "n_loops", "loops_per_sec", "seconds")
"""Columns of metrics.jsonl, beside one for each of an experiment's `terms`."""


@dataclass(frozen=True, kw_only=True)
class CarryConfig:
    """Carry: a share of each batch does not start at h_0 but continues, detached, from where an earlier batch ended.

    Random loop counts alone show the model states of a few loops' age. Carried rows grow older with every step, up to
    `max_loops`, at no extra cost: each training step still runs T loops with gradient.
    """

    share: float = 0.0
    """Share of the batch that is carried, at most one half, and at least one row of each part. 0 turns carrying off."""
    max_loops: int = 200
    """Greatest age of a carried row; each draws its own limit uniformly from 1 to this."""
    onset: int = 0
    """First training step with carried rows. Too early, and the task is never learned."""

    def __post_init__(self):
        checks.number(self, 0, 0.5, "share")
        checks.whole(self, 1, "max_loops")
        checks.whole(self, 0, "onset")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """AdamW with warm-up and a cosine to `lr_end`. The defaults are the paper's addition run."""

    steps: int = 10_000
    """Optimiser steps."""
    batch_size: int = 512
    """Sequences per optimiser step, over all ranks and accumulated parts together."""
    batch_repeats: int = 1
    """Steps in a row that train on the same batch, each at its own draw of loops and dropout (4 in the public code)."""
    shuffle: bool = True
    """Shuffle the problems anew in each epoch; False takes them in the order of the file."""
    accumulation: int = 1
    """Parts a rank splits its batch into to save memory."""
    lr: float = 1e-4
    """Peak learning rate."""
    lr_end: float = 0.0
    """Learning rate at the last step, as a fraction of the peak."""
    warmup_steps: int = 2000
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay."""
    grad_clip: float = 1.0
    """Largest L2 norm of the gradient; 0 does not clip."""
    per_sequence_loops: bool = False
    """Draw one loop count per sequence instead of one per batch."""
    backprop_loops: int = 0
    """Loops, the last of each batch, that gradients go through; 0 is all (see `objective`)."""
    precision: Precision = "fp32"
    """fp32, fp32 with TF32 matrix products, or bf16 autocast."""
    compile: bool = False
    """Compile Phi with torch.compile."""
    log_every: int = 50
    """Steps between lines in metrics.jsonl (and between the only host synchronisations)."""
    report_to: tuple[Tracker, ...] = ()
    """Who else gets the lines of metrics.jsonl (see `training.trackers`)."""
    checkpoint_every: int = 500
    """Steps between checkpoints; 0 writes only the last."""

    def __post_init__(self):
        checks.choice(self, precision=Precision)
        checks.some_of(self, report_to=Tracker)
        checks.whole(self, 1, "steps", "batch_size", "batch_repeats", "accumulation", "log_every")
        checks.whole(self, 0, "warmup_steps", "checkpoint_every", "backprop_loops")
        checks.number(self, 0, math.inf, "lr", open_start=True)
        checks.number(self, 0, math.inf, "weight_decay", "grad_clip")
        checks.number(self, 0, 1, "lr_end")
        checks.flag(self, "per_sequence_loops", "compile", "shuffle")
        if self.batch_size % self.accumulation:
            raise ConfigError(f"TrainingConfig.accumulation must divide batch_size ({self.batch_size}), got {self.accumulation}")
        if self.backprop_loops and self.per_sequence_loops:
            raise ConfigError(
                "TrainingConfig.backprop_loops needs one loop count per batch: set per_sequence_loops to False, or it to 0"
            )
        checks.numbers(self, 2, 0, 1, "betas", open_end=True)


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Where a run begins: with the initial weights of its seed, or at a checkpoint of another run (see `training.origins`)."""

    run: str = ""
    """Folder of a finished run, or of one checkpoint of any run; empty: the initial weights."""
    keep: Kept = "weights"
    """`weights`: a warm start, a new run from these weights, its steps counted from 0. `training`: the same run made longer;
    moments, carried states and the step number come along, and the schedule is that of the new number of steps from there on."""

    def __post_init__(self):
        checks.text(self, "run", empty=True)
        checks.choice(self, keep=Kept)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One training run, complete: two runs with equal configs on one machine, with as many threads, end with equal weights."""

    model: Model = field(default_factory=ModelConfig)
    """What is looped."""
    loops: LoopSampler = field(default_factory=FixedLoops)
    """How often, in training."""
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    """The Jacobian term of the loss."""
    terms: dict[str, Penalty] = field(default_factory=dict, hash=False)
    """Further terms of the loss, each under a name of your choice."""
    carry: CarryConfig = field(default_factory=CarryConfig)
    """Training from deep states."""
    data: Task = field(default_factory=Addition)
    """Which problems."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How the weights move."""
    start: StartConfig = field(default_factory=StartConfig)
    """Where they come from."""
    seed: int = 0
    """Initial weights, batches, loop counts, dropout and probe vectors all follow from it."""

    def __post_init__(self):
        checks.whole(self, 0, "seed", most=checks.MOST_SEED)
        if self.carry.share and self.training.per_sequence_loops:
            raise ConfigError("CarryConfig.share needs one loop count per batch: set TrainingConfig.per_sequence_loops to False")
        if not isinstance(self.terms, dict) or not all(isinstance(term, Penalty) for term in self.terms.values()):
            checks.fail(self, "terms", "a mapping of names to penalties")
        if wrong := [name for name in self.terms if not name.isidentifier() or name in LOGGED]:
            raise ConfigError(
                f"ExperimentConfig.terms must have names of letters, and none of {', '.join(LOGGED)}, got {wrong[0]!r}"
            )

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Older configs have the penalty on the last change in fields of `penalty`."""
        penalty = values.get("penalty")
        if not isinstance(penalty, dict) or not (weight := penalty.get("l2_weight")):
            return values
        kind = "RelativeChange" if penalty.get("last_change") == "relative_squared" else "LastChange"
        term = {"kind": kind, "weight": weight, "onset": penalty.get("onset", PenaltyConfig.onset)}
        rest = {} if penalty.get("weight") else {"onset": PenaltyConfig.onset}  # else the onset was the term's alone
        return values | {"penalty": penalty | {"l2_weight": 0.0} | rest, "terms": {"l2": term}}

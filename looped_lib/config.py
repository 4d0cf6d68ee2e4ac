"""Everything that defines an experiment, as frozen dataclasses that check themselves.

    ExperimentConfig
      model     ModelConfig       what is looped
      loops     LoopSampler       how often, in training
      penalty   PenaltyConfig     how stable: the Jacobian penalty (weight 0 turns it off)
      carry     CarryConfig       training that starts from deep states (share 0 turns it off)
      data      DataConfig        which problems
      training  TrainingConfig    optimiser, schedule, precision, checkpoints
      start     StartConfig       where the weights come from: the seed, or another run

Every value lives in one place. A wrong value or an unknown field is an error that names the field and says what
would be right; a missing one takes its default. `to_dict` and `from_dict` go through JSON without loss.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from looped_lib.core import checks
from looped_lib.core.checks import ConfigError
from looped_lib.core.dicts import differences, from_dict, to_dict
from looped_lib.samplers import FixedLoops, LoopSampler

__all__ = ["differences", "from_dict", "to_dict"]  # configs are read and written with them

NormPlacement = Literal["pre_norm", "post_norm", "sandwich_branch", "sandwich_dual"]
NormType = Literal["LayerNorm", "RMSNorm", "SimpleNorm", "DeepNorm"]
FinalNorm = Literal["as_blocks", "LayerNorm"]
InjectionKind = Literal["none", "add", "concat", "diagonal"]
InitialState = Literal["embedding", "random"]
Quantity = Literal["squared_fro", "spectral_norm", "spectral_radius"]
LastChange = Literal["l2", "relative_squared"]
Product = Literal["vjp", "jvp", "finite_difference"]
Precision = Literal["fp32", "tf32", "bf16"]
Kept = Literal["weights", "training"]

MOST_SEED = 2**63 - 1
MOST_DIGITS = 1000
MOST_PROBLEMS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The small looped transformer. The defaults are the paper's addition model (2.4 M parameters)."""

    norm_placement: NormPlacement = "sandwich_dual"
    """Where the norms stand in each residual (see `blocks`)."""
    norm_type: NormType = "LayerNorm"
    """Which norm (see `norms`). DeepNorm weighs the stream in post_norm; elsewhere it is LayerNorm with its initial weights."""
    final_norm: FinalNorm = "as_blocks"
    """The norm before the head: of the blocks' type, or LayerNorm with gain and bias whatever theirs is."""
    rms_eps: float = 1e-5
    """Epsilon of RMSNorm."""
    d_model: int = 512
    """Width of the stream."""
    n_heads: int = 8
    """Attention heads; must divide d_model."""
    d_ff: int = 1024
    """Width of the MLP's hidden layer."""
    k_layers: int = 1
    """Blocks in Phi, shared by all loops."""
    prelude_layers: int = 0
    """Unlooped blocks before the loop."""
    coda_layers: int = 0
    """Unlooped blocks after the loop."""
    dropout: float = 0.1
    """Dropout on the embedding, the attention weights and the MLP output."""
    deepnorm_alpha: float = 10.0
    """alpha of DeepNorm, N(alpha x + F x); sqrt(alpha / 2) is the gain of its initial output projections."""
    init_std: float = 0.02
    """Standard deviation of the initial weights and embeddings."""
    vocab_size: int = 15
    """Tokens; the addition task has 15 characters."""
    max_len: int = 64
    """Positions that have an embedding."""
    injection: InjectionKind = "none"
    """How the embedded input enters every loop again (see `injection`)."""
    initial_state: InitialState = "embedding"
    """Where the loops begin (see `initial_state`); random needs injection."""

    def __post_init__(self):
        checks.choice(self, norm_placement=NormPlacement, norm_type=NormType, final_norm=FinalNorm)
        checks.choice(self, injection=InjectionKind, initial_state=InitialState)
        checks.whole(self, 1, "d_model", "n_heads", "d_ff", "k_layers", "vocab_size", "max_len")
        checks.whole(self, 0, "prelude_layers", "coda_layers")
        checks.number(self, 0, 1, "dropout", open_end=True)
        checks.number(self, 0, math.inf, "deepnorm_alpha", "init_std", "rms_eps", open_start=True)
        if self.d_model % self.n_heads:
            raise ConfigError(f"ModelConfig.n_heads must divide d_model ({self.d_model}), got {self.n_heads}")
        if self.initial_state == "random" and self.injection == "none":
            raise ConfigError("ModelConfig.initial_state 'random' needs an injection: without one the model never sees its input")


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig:
    """Which penalty on J = dPhi/dh at the last state is added to the loss, and how it is estimated.

    `regularizers` says what is detached, what receives gradient and how R is normalised.

    With R the Jacobian term and S = mean over tokens of ||h_T - h_{T-1}|| (or what `last_change` says),

        loss = (1 - weight) CE + weight R + l2_weight S.
    """

    weight: float = 0.0
    """w above. 0 leaves the Jacobian out (and costs nothing)."""
    quantity: Quantity = "squared_fro"
    """What R estimates: ||J||_F^2 per entry of h, the squared spectral norm, or the squared spectral radius."""
    product: Product = "vjp"
    """How J is applied: exact v^T J, exact J v, or (Phi(h + eps v) - Phi(h - eps v)) / (2 eps)."""
    iterations: int = 1
    """Power iterations, all but the last detached. Squared Frobenius takes one probe: leave it at 1."""
    persistent: bool = False
    """Keep the power-iteration vectors from one training step to the next instead of drawing new ones."""
    share: float = 0.25
    """Share of the batch the penalty is estimated on; 1 uses every sequence."""
    onset: int = 2000
    """First training step with either penalty (the paper: after warm-up)."""
    l2_weight: float = 0.0
    """Weight of the penalty on the last loop's change (the paper's baseline)."""
    last_change: LastChange = "l2"
    """S: ||h_T - h_{T-1}||, or ||h_T - h_{T-1}||^2 / ||h_T||^2, a mean over tokens."""
    public_code: bool = False
    """Estimate exactly as the public code does (see `regularizers.public_code_penalty`)."""

    def __post_init__(self):
        checks.choice(self, quantity=Quantity, product=Product, last_change=LastChange)
        checks.number(self, 0, 1, "weight", open_end=True)
        checks.number(self, 0, 1, "share", open_start=True)
        checks.number(self, 0, math.inf, "l2_weight")
        checks.whole(self, 1, "iterations")
        checks.whole(self, 0, "onset")
        checks.flag(self, "persistent", "public_code")
        if self.persistent and self.quantity == "squared_fro":
            raise ConfigError("PenaltyConfig.persistent keeps power-iteration vectors; 'squared_fro' draws independent probes")
        if self.quantity == "squared_fro" and self.iterations != 1 and not self.public_code:
            checks.fail(self, "iterations", "1 for 'squared_fro', which takes one probe")
        if self.public_code and (self.quantity, self.product, self.share) != ("squared_fro", "vjp", 1.0):
            raise ConfigError(
                "PenaltyConfig.public_code is one VJP over the whole batch: it needs 'squared_fro', 'vjp' and share 1"
            )


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
class DataConfig:
    """Addition problems: two JSONL files in the public format, or problems generated from a seed."""

    train_file: str = ""
    """Training problems; empty generates `n_train` problems of `digits` digits."""
    test_file: str = ""
    """Held-out problems, all that the file has; empty generates `n_test` problems disjoint from the training ones."""
    digits: int = 4
    """Digits of each generated operand."""
    n_train: int = 95_000
    """Generated training problems."""
    n_test: int = 5_000
    """Generated held-out problems."""
    seed: int = 0
    """Seed of the generated problems."""

    def __post_init__(self):
        checks.whole(self, 1, "digits", most=MOST_DIGITS)
        checks.whole(self, 1, "n_train", "n_test", most=MOST_PROBLEMS)
        checks.whole(self, 0, "seed", most=MOST_SEED)
        checks.text(self, "train_file", "test_file", empty=True)
        if bool(self.train_file) != bool(self.test_file):
            raise ConfigError("DataConfig.train_file and test_file go together: give both, or neither to generate the problems")


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
    checkpoint_every: int = 500
    """Steps between checkpoints; 0 writes only the last."""

    def __post_init__(self):
        checks.choice(self, precision=Precision)
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

    model: ModelConfig = field(default_factory=ModelConfig)
    """What is looped."""
    loops: LoopSampler = field(default_factory=FixedLoops)
    """How often, in training."""
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    """Terms beside the cross-entropy."""
    carry: CarryConfig = field(default_factory=CarryConfig)
    """Training from deep states."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which problems."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How the weights move."""
    start: StartConfig = field(default_factory=StartConfig)
    """Where they come from."""
    seed: int = 0
    """Initial weights, batches, loop counts, dropout and probe vectors all follow from it."""

    def __post_init__(self):
        checks.whole(self, 0, "seed", most=MOST_SEED)
        if self.carry.share and self.training.per_sequence_loops:
            raise ConfigError("CarryConfig.share needs one loop count per batch: set TrainingConfig.per_sequence_loops to False")

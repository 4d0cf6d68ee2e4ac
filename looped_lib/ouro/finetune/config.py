"""Every setting of an Ouro fine-tuning run. The defaults are the paper's recipe for Ouro-1.4B on 8 GPUs.

    FinetuneConfig
      loops     LoopSampler       how often the stack is looped, one draw per micro-batch, the same on every rank
      penalty   PenaltyConfig     the Jacobian penalty (weight 0 turns it off)
      data      ChatDataConfig    which conversations, and how they become tokens
      updates   UpdatesConfig     optimiser, schedule, batch, precision, checkpoints

The four modes of the paper's table differ in two fields:

    SFT            loops fixed at 4,   penalty.weight 0
    random loops   loops log-normal,   penalty.weight 0
    JSRR only      loops fixed at 4,   penalty.weight 0.1
    STARS          loops log-normal,   penalty.weight 0.1
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from looped_lib.config import PenaltyConfig, Tracker
from looped_lib.core import checks
from looped_lib.core.checks import ConfigError
from looped_lib.samplers import LogNormalLoops, LoopSampler

Schedule = Literal["warmup_stable_decay", "cosine"]
Precision = Literal["fp32", "bf16"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
Parallel = Literal["ddp", "fsdp2"]
Loss = Literal["last_loop", "gate_mixture"]

SYSTEM_PROMPT = "You are a helpful assistant that can assist users with reasoning."


@dataclass(frozen=True, kw_only=True)
class ChatDataConfig:
    """Conversations, of which the answers are learned: a question and an answer a row, or turns in one column."""

    dataset: str = "AI-MO/NuminaMath-1.5"
    """A dataset of the hub by name, or a local folder (as the hub has it, or of save_to_disk), .jsonl or .parquet file."""
    subset: str = ""
    """What the hub calls a configuration, gsm8k's 'main' for instance, where a dataset has several."""
    split: str = "train"
    """Split of a hub dataset or a local folder."""
    prompt_column: str = "problem"
    """Column with the question."""
    response_column: str = "solution"
    """Column with the answer: the only text with a loss."""
    messages_column: str = ""
    """Column with whole conversations, lists of {role, content}, instead of the two: every turn of the assistant is learned."""
    system_prompt: str = SYSTEM_PROMPT
    """Opens every conversation that does not open with a system turn of its own; empty leaves it out."""
    max_len: int = 2048
    """Tokens kept of a conversation."""
    max_rows: int = 400_000
    """Rows used, drawn by the seed from those whose texts are all there; 0 uses all."""
    packing: bool = False
    """Put several conversations into one row of max_len tokens, blind to each other."""

    def __post_init__(self):
        checks.text(self, "dataset", "split", "prompt_column", "response_column")
        checks.whole(self, 2, "max_len")
        checks.whole(self, 0, "max_rows")
        checks.text(self, "subset", "messages_column", "system_prompt", empty=True)
        checks.flag(self, "packing")


@dataclass(frozen=True, kw_only=True)
class UpdatesConfig:
    """AdamW with weights and moments in float32, whatever the precision of the products."""

    steps: int = 0
    """Updates; 0 makes one pass over the data."""
    batch_size: int = 256
    """Rows per update, over all processes and accumulated parts together: the same on any number of GPUs."""
    micro_batch: int = 1
    """Rows a process computes at once."""
    lr: float = 1e-6
    """Peak learning rate."""
    schedule: Schedule = "warmup_stable_decay"
    """The public code's schedule, or the paper's cosine; both warm up first."""
    warmup_ratio: float = 0.1
    """Share of the updates in the linear warm-up."""
    decay_ratio: float = 0.1
    """Share of the updates in the final decay of warmup_stable_decay."""
    min_lr_ratio: float = 0.001
    """Learning rate at the end, as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decays."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay (matrices only)."""
    grad_clip: float = 1.0
    """Largest L2 norm of the gradient; 0 does not clip."""
    precision: Precision = "bf16"
    """Of the products: float32, or bfloat16 under autocast."""
    attention: Attention = "sdpa"
    """Attention kernel. Exact penalties run their one loop on the math kernel, whatever this is."""
    gradient_checkpointing: bool = True
    """Keep only the state between loops and recompute each loop in the backward pass."""
    compile: bool = False
    """Compile the model with torch.compile."""
    parallel: Parallel = "ddp"
    """Between processes: DDP, or FSDP2 with sharded weights, gradients and moments."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank on all projections of the layers; 0 trains every weight."""
    log_every: int = 1
    """Updates between lines in metrics.jsonl."""
    report_to: tuple[Tracker, ...] = ("tensorboard",)
    """Who else gets the lines of metrics.jsonl; none if empty. All but TensorBoard are to be installed, and set up, by you."""
    checkpoint_every: int = 300
    """Updates between checkpoints."""
    checkpoints_kept: int = 2
    """Newest checkpoints kept."""

    def __post_init__(self):
        checks.choice(self, schedule=Schedule, precision=Precision, attention=Attention, parallel=Parallel)
        checks.whole(self, 0, "steps", "lora_rank")
        checks.whole(self, 1, "batch_size", "micro_batch", "log_every", "checkpoint_every", "checkpoints_kept")
        checks.number(self, 0, math.inf, "lr", open_start=True)
        checks.number(self, 0, 1, "warmup_ratio", "decay_ratio", "min_lr_ratio")
        checks.number(self, 0, math.inf, "weight_decay", "grad_clip")
        checks.flag(self, "gradient_checkpointing", "compile")
        if self.batch_size % self.micro_batch:
            checks.fail(self, "micro_batch", f"a divisor of batch_size ({self.batch_size})")
        if self.warmup_ratio + self.decay_ratio > 1:
            checks.fail(self, "decay_ratio", f"at most 1 - warmup_ratio ({1 - self.warmup_ratio:g})")
        checks.numbers(self, 2, 0, 1, "betas", open_end=True)
        checks.some_of(self, report_to=Tracker)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One fine-tuning run, complete."""

    model: str = "ByteDance/Ouro-1.4B"
    """A model of the hub by name, or a local folder."""
    from_scratch: bool = False
    """Start from random weights of `model`'s config.json instead of its weights."""
    tokenizer: str = ""
    """A tokenizer of the hub or a local folder; empty takes the model's."""
    loops: LoopSampler = field(default_factory=lambda: LogNormalLoops(mu=1.7, sigma=0.4, low=1, high=16))
    """Loop counts in training (mean 5.9, median 5)."""
    penalty: PenaltyConfig = field(default_factory=lambda: PenaltyConfig(weight=0.1, share=1.0, onset=0))
    """The Jacobian penalty; `share` is the share of an update's micro-batches it is estimated on."""
    loss: Loss = "last_loop"
    """Cross-entropy of the last loop, or Ouro's pre-training mixture over loops, weighted by the exit gate."""
    entropy_weight: float = 0.1
    """beta of the mixture, sum_t p_t L_t - beta H(p)."""
    data: ChatDataConfig = field(default_factory=ChatDataConfig)
    """Which conversations."""
    updates: UpdatesConfig = field(default_factory=UpdatesConfig)
    """How the weights move."""
    seed: int = 74
    """Order of the data, loop counts, probe vectors and (from scratch) weights follow from it."""

    def __post_init__(self):
        checks.text(self, "model")
        checks.text(self, "tokenizer", empty=True)
        checks.choice(self, loss=Loss)
        checks.flag(self, "from_scratch")
        checks.number(self, 0, math.inf, "entropy_weight")
        checks.whole(self, 0, "seed", most=2**32 - 1)  # what NumPy's own generator takes
        first_order = self.penalty.product == "finite_difference" or self.penalty.weight == 0
        if self.updates.parallel == "fsdp2" and not first_order:
            raise ConfigError(
                "PenaltyConfig.product must be 'finite_difference' with UpdatesConfig.parallel 'fsdp2', which has no second "
                f"derivatives, got {self.penalty.product!r}"
            )
        if self.updates.compile and not first_order:
            raise ConfigError(
                "PenaltyConfig.product must be 'finite_difference' with UpdatesConfig.compile, which has no second "
                f"derivatives, got {self.penalty.product!r}"
            )
        if self.updates.attention == "flash_attention_2" and self.updates.precision == "fp32":
            raise ConfigError("UpdatesConfig.precision must be 'bf16' with 'flash_attention_2', which has no float32, got 'fp32'")
        if self.data.packing and self.updates.attention == "flash_attention_2" and self.updates.micro_batch > 1:
            raise ConfigError(
                "UpdatesConfig.micro_batch must be 1 with ChatDataConfig.packing and 'flash_attention_2', which tells packed "
                f"texts apart in single rows only, got {self.updates.micro_batch}"
            )
        if self.from_scratch and self.updates.lora_rank:
            raise ConfigError("FinetuneConfig.from_scratch leaves adapters (UpdatesConfig.lora_rank) without weights to adapt")
        if self.penalty.public_code or self.penalty.persistent:
            raise ConfigError("PenaltyConfig.public_code and persistent are not for fine-tuning")


def updates_of(c: UpdatesConfig, rows: int) -> int:
    """Updates of a run over `rows` rows: those asked for, or one pass."""
    return c.steps or math.ceil(rows / c.batch_size)

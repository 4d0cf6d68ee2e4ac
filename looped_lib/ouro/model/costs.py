"""What training costs: FLOPs, the share of the machine's peak they make (MFU), and memory.

A multiply-add is two FLOPs. Per token, with s tokens in a row, kv = key/value heads * head_dim, q = heads * head_dim:

    one layer     2 d (2 q + 2 kv) + 6 d f  for the projections,  2 q s  for causal attention (half of the square)
    head          2 d V
    forward       n_loops * N * layer + head,      backward twice that

Recomputation (gradient checkpointing) and the penalty are work but not progress: they count in time, not in FLOPs, and lower the
MFU.
"""

import resource
from dataclasses import dataclass

import torch

from looped_lib.ouro.model.configuration import OuroConfig

# Dense bfloat16 tensor-core FLOP/s by name of the device, as its maker states them.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


def parameters(config: OuroConfig) -> int:
    """Weights of the model, head and gate included."""
    d, f, head = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    layer = d * (2 * q + 2 * kv) + 3 * d * f + 4 * d
    embeddings = config.vocab_size * d * (1 if config.tie_word_embeddings else 2)
    return config.num_hidden_layers * layer + embeddings + d + d + 1


def flops_per_loop(config: OuroConfig, seq: int) -> float:
    """FLOPs of one loop per token, forward."""
    d, f, head = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    return config.num_hidden_layers * (2 * d * (2 * q + 2 * kv) + 6 * d * f + 2 * q * seq)


def training_flops(config: OuroConfig, n_loops: float, seq: int) -> float:
    """FLOPs per token of one forward and backward pass at `n_loops` loops (a mean will do)."""
    return 3 * (n_loops * flops_per_loop(config, seq) + 2 * config.hidden_size * config.vocab_size)


def peak_flops(device: torch.device) -> float | None:
    """The device's stated bfloat16 peak, None if it is not in the table (a CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def memory_used(device: torch.device) -> float:
    """Greatest memory held so far, in bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


@dataclass(frozen=True)
class Memory:
    """Bytes one process needs to train, by what they hold. An estimate; `metrics.jsonl` records what was held."""

    weights: float
    """float32 weights, and their copies in bfloat16 under autocast."""
    gradients: float
    """float32; between the processes of DDP, once more in its buckets."""
    moments: float
    """AdamW's two, float32."""
    states: float
    """What the backward pass needs: states between loops, and the tensors of the loops that are not recomputed."""
    logits: float
    """Logits, their float32 copy and its gradient."""
    saved: float
    """Copies of weights and moments for a checkpoint, which are made in the CPU's memory after the update."""

    @property
    def total(self) -> float:
        """At the fullest moment."""
        return self.weights + self.gradients + self.moments + max(self.states + self.logits, self.saved)


def training_memory(
    config: OuroConfig,
    n_loops: int,
    micro_batch: int,
    seq: int,
    bf16: bool,
    checkpointing: bool,
    shards: int = 1,
    buckets: bool = False,
    penalty: bool = False,
    on_cpu: bool = False,
) -> Memory:
    """Memory at the deepest draw `n_loops`, with weights, gradients and moments split over `shards` processes (FSDP2).

    `buckets`: DDP between processes. `penalty`: its one loop, differentiated twice, keeps what five loops keep (measured: 4.4).
    A layer keeps about 10 d + 3 f + 3 (q + kv) numbers a token for its backward pass when attention is fused. With checkpointing
    one loop's layers are held at a time, and the state between loops; without it those of all loops.
    """
    d, f = config.hidden_size, config.intermediate_size
    q, kv = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    n, size = parameters(config), 2 if bf16 else 4
    tokens = micro_batch * seq
    loop = tokens * config.num_hidden_layers * (10 * d + 3 * f + 3 * (q + kv)) * size
    kept = (1 if checkpointing else n_loops) + (5 if penalty else 0)  # loops
    return Memory(
        weights=(4 * n + (2 * n if bf16 else 0)) / shards,
        gradients=4 * n / shards * (2 if buckets else 1),
        moments=8 * n / shards,
        states=kept * loop + (n_loops + 1) * tokens * d * 4,
        logits=tokens * config.vocab_size * (size + 4 + 4),
        saved=12.0 * n if on_cpu else 0.0,
    )

"""Transformer blocks: attention and MLP, each wrapped in one of five residual forms.

With x the stream, F the sublayer and N, N1, N2 norms, the placements of the paper (section 4.1) are

    pre_norm          x + F(N x)                 the stream itself is never normalised: it may grow without bound
    sandwich_branch   x + N2(F(N1 x))            each step is bounded, their sum is not
    post_norm         N(x + F x)                 the stream is normalised after every sublayer: bounded
    sandwich_dual     N2(x + F(N1 x))            bounded, and F sees a normalised input
    DeepNorm          N(alpha x + F x)           post_norm with a heavier stream

A block is one residual around attention, then one around the MLP. The residual class is the placement; nothing is decided
by comparing strings in `forward`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from looped_lib.models.cache import Slot
from looped_lib.models.config import ModelConfig
from looped_lib.models.dropout import Dropout
from looped_lib.models.linear import Linear
from looped_lib.models.norms import MakeNorm, make_norm

Stream = Float[Tensor, "batch seq d_model"]


class CausalSelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(d_head) + causal mask) V, then the output projection. Dropout acts on the attention weights."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.qkv = Linear(config.d_model, 3 * config.d_model)
        self.out = Linear(config.d_model, config.d_model)

    def forward(self, x: Stream, slot: Slot | None = None) -> Stream:
        batch, seq, d_model = x.shape
        heads = (batch, seq, self.n_heads, d_model // self.n_heads)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        if slot is not None:
            k, v = slot.append(k, v)
        past = k.shape[2] - seq
        # With a cache, query i stands at position past + i; a single query sees everything and needs no mask.
        mask = _causal_mask(seq, past, x.device) if past and seq > 1 else None
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0, is_causal=past == 0 and seq > 1
        )
        return self.out(y.transpose(1, 2).reshape(batch, seq, d_model))


class MLP(nn.Module):
    """W2 gelu(W1 x), then dropout."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up = Linear(config.d_model, config.d_ff)
        self.out = Linear(config.d_ff, config.d_model)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Stream) -> Stream:
        return self.dropout(self.out(F.gelu(self.up(x))))


class Residual(nn.Module):
    """A sublayer on the stream: outer(add(x)). Subclasses say what is added and which norm, if any, closes it."""

    def add(self, x: Stream, *args: Slot | None) -> Stream:
        """The stream plus the sublayer's branch, before the outer norm."""
        raise NotImplementedError

    def outer(self, u: Stream) -> Stream:
        """The norm around the sum; the identity where the placement has none."""
        return u

    def forward(self, x: Stream, *args: Slot | None) -> Stream:
        return self.outer(self.add(x, *args))


class PreNormResidual(Residual):
    """x + F(N x)."""

    def __init__(self, sublayer: nn.Module, norm: MakeNorm):
        super().__init__()
        self.sublayer = sublayer
        self.norm = norm()

    def add(self, x: Stream, *args: Slot | None) -> Stream:
        return x + self.sublayer(self.norm(x), *args)


class PostNormResidual(Residual):
    """N(x + F x)."""

    def __init__(self, sublayer: nn.Module, norm: MakeNorm):
        super().__init__()
        self.sublayer = sublayer
        self.norm = norm()

    def add(self, x: Stream, *args: Slot | None) -> Stream:
        return x + self.sublayer(x, *args)

    def outer(self, u: Stream) -> Stream:
        return self.norm(u)


class SandwichBranchResidual(Residual):
    """x + N2(F(N1 x))."""

    def __init__(self, sublayer: nn.Module, norm: MakeNorm):
        super().__init__()
        self.sublayer = sublayer
        self.norm_in = norm()
        self.norm_out = norm()

    def add(self, x: Stream, *args: Slot | None) -> Stream:
        return x + self.norm_out(self.sublayer(self.norm_in(x), *args))


class SandwichDualResidual(Residual):
    """N2(x + F(N1 x))."""

    def __init__(self, sublayer: nn.Module, norm: MakeNorm):
        super().__init__()
        self.sublayer = sublayer
        self.norm_in = norm()
        self.norm_out = norm()

    def add(self, x: Stream, *args: Slot | None) -> Stream:
        return x + self.sublayer(self.norm_in(x), *args)

    def outer(self, u: Stream) -> Stream:
        return self.norm_out(u)


class DeepNormResidual(Residual):
    """N(alpha x + F x)."""

    def __init__(self, sublayer: nn.Module, norm: MakeNorm, alpha: float):
        super().__init__()
        self.sublayer = sublayer
        self.norm = norm()
        self.alpha = alpha

    def add(self, x: Stream, *args: Slot | None) -> Stream:
        return self.alpha * x + self.sublayer(x, *args)

    def outer(self, u: Stream) -> Stream:
        return self.norm(u)


_RESIDUALS = {
    "pre_norm": PreNormResidual,
    "post_norm": PostNormResidual,
    "sandwich_branch": SandwichBranchResidual,
    "sandwich_dual": SandwichDualResidual,
}


class Block(nn.Module):
    """One transformer block: a residual around attention, then a residual around the MLP."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = _residual(CausalSelfAttention(config), config)
        self.mlp = _residual(MLP(config), config)

    def before_norm(self, x: Stream, slot: Slot | None = None) -> Stream:
        """The block's output before the norm that closes it: forward = mlp.outer(before_norm)."""
        return self.mlp.add(self.attention(x, slot))

    def forward(self, x: Stream, slot: Slot | None = None) -> Stream:
        return self.mlp.outer(self.before_norm(x, slot))


def _residual(sublayer: nn.Module, config: ModelConfig) -> nn.Module:
    def norm() -> nn.Module:
        return make_norm(config.norm_type, config.d_model, config.rms_eps)

    if config.norm_type == "DeepNorm" and config.norm_placement == "post_norm":
        return DeepNormResidual(sublayer, norm, config.deepnorm_alpha)
    return _RESIDUALS[config.norm_placement](sublayer, norm)


def _causal_mask(seq: int, past: int, device: torch.device) -> Tensor:
    return torch.ones(seq, past + seq, dtype=torch.bool, device=device).tril(past)

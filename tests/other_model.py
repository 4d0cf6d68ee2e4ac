"""A looped model that shares no code with the library: rotary positions, grouped queries, SwiGLU, one norm after every loop.

Analysis must work on it through embed, step and readout alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OtherModel(nn.Module):
    """Two layers in Phi, `d_model` wide, 4 query heads on 2 key heads."""

    def __init__(self, d_model: int = 16, vocab: int = 15):
        super().__init__()
        self.tokens = nn.Embedding(vocab, d_model)
        self.head = nn.Linear(d_model, vocab, bias=False)
        self.q, self.o = (nn.ModuleList(nn.Linear(d_model, d_model, bias=False) for _ in range(2)) for _ in range(2))
        self.kv = nn.ModuleList(nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.gate_up = nn.ModuleList(nn.Linear(d_model, 4 * d_model, bias=False) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(2 * d_model, d_model, bias=False) for _ in range(2))
        self.norm = nn.RMSNorm(d_model)

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids)

    def step(self, h: Tensor) -> Tensor:
        for q, kv, o, gate_up, down in zip(self.q, self.kv, self.o, self.gate_up, self.down, strict=True):
            k, v = kv(h).chunk(2, -1)
            y = F.scaled_dot_product_attention(
                rotate(heads(q(h), 4)), rotate(heads(k, 2)), heads(v, 2), is_causal=True, enable_gqa=True
            )
            h = h + o(y.transpose(1, 2).flatten(2))
            gate, up = gate_up(h).chunk(2, -1)
            h = h + down(F.silu(gate) * up)
        return self.norm(h)

    def readout(self, h: Tensor) -> Tensor:
        return self.head(h)


def heads(x: Tensor, n: int) -> Tensor:
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding in the half-split form."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] / 100 ** (torch.arange(half, dtype=x.dtype) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

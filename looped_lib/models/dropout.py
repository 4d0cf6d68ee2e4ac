"""Dropout with cheap masks on a CPU.

torch draws one random number per entry there, on one thread: 8 % of a training step at the paper's size. Here each 64-bit
number decides four entries, by 16 bits each. p is rounded to a multiple of 2^-16, and the entries kept are scaled by exactly
what keeps the mean: y = x m / (1 - p), m = 1 with probability 1 - p, else 0.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Module):
    """`nn.Dropout` with torch's own kernel on other devices; the identity in evaluation mode."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if not self.training or self.p == 0:
            return x
        return x * keep_mask(x, self.p) if x.device.type == "cpu" else F.dropout(x, self.p)


def keep_mask(like: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Independent entries 0 with probability p (to 2^-16), else 1 / (1 - p), from torch's default generator."""
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    n = like.numel()
    words = torch.empty(-(-n // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    keep = words.view(torch.int16)[:n].view(like.shape) >= dropped - _LEVELS // 2  # the smallest int16 is minus half of them
    return keep.to(like.dtype).mul_(_LEVELS / (_LEVELS - dropped))

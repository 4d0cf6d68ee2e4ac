"""Where the loops begin, given the embedded input e.

    embedding   h_0 = e
    random      h_0 ~ N(0, sigma^2), sigma = sqrt(2) init_std

sigma is the standard deviation of e (token plus position) before training, as in Huginn (arXiv 2502.05171), where both have
variance 2/5. A random h_0 says nothing about the input, so that the fixed point must come from the injected e.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from looped_lib.models.config import ModelConfig

Stream = Float[Tensor, "batch seq d_model"]


class EmbeddedStart(nn.Module):
    """h_0 = e."""

    def __init__(self, config: ModelConfig):
        super().__init__()

    def forward(self, e: Stream, first: int) -> Stream:
        return e


class RandomStart(nn.Module):
    """In training h_0 is drawn anew for every row and position, from torch's default generator; in evaluation it depends on the
    position alone, so that the same text has the same states however it is computed."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.sigma = math.sqrt(2) * config.init_std
        draw = torch.randn(config.max_len, config.d_model, generator=torch.Generator().manual_seed(0))
        self.register_buffer("by_position", self.sigma * draw, persistent=False)

    def forward(self, e: Stream, first: int) -> Stream:
        if self.training:
            return self.sigma * torch.randn_like(e)
        return self.by_position[first : first + e.shape[1]].expand_as(e)


STARTS = {"embedding": EmbeddedStart, "random": RandomStart}

"""One of each part that a user may define, outside of the library: loop counts, norm, penalty, task and two models."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from looped_lib.config import CarryConfig, ExperimentConfig, PenaltyConfig, TrainingConfig
from looped_lib.models.config import Model
from looped_lib.models.norms import Norm, make_norm
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM
from looped_lib.regularizers import Penalty
from looped_lib.samplers import LoopSampler
from looped_lib.tasks.problems import distinct
from looped_lib.tasks.task import Task


@dataclass(frozen=True)
class OddLoops(LoopSampler):
    """1 and 3 loops, equally often."""

    support = property(lambda self: np.arange(1, 4))

    def pmf(self):
        return np.array([0.5, 0.0, 0.5])


class MaxNorm(Norm, nn.Module):
    """g * x / max |x|."""

    def __init__(self, d_model, eps):
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(d_model)), eps

    def forward(self, x):
        return self.gain * x / (x.abs().amax(-1, keepdim=True) + self.eps)


@dataclass(frozen=True, kw_only=True)
class NextChange(Penalty):
    """How far one loop more than any that was run would go: a term on Phi and h_T, with a power of one's own."""

    power: int = 2

    def value(self, phi, h_T, h_before):
        return (phi(h_T) - h_T).abs().pow(self.power).mean() + 0 * h_before.sum()


@dataclass(frozen=True, kw_only=True)
class Reverse(Task):
    """`abb>bba`: texts of a and b, 1 to `longest` characters, and the same backwards."""

    characters: ClassVar[str] = "ab>"
    longest: int = 5

    def generate(self, n, seed, skip=0):
        def draw(rng):
            return self.parse("".join(rng.choices("ab", k=rng.randint(1, self.longest))))

        return distinct(draw, n, seed, skip)

    def parse(self, text):
        word = text.removesuffix(">")
        if not word or set(word) - {"a", "b"}:
            raise ValueError(f"{text!r} is not a problem: write letters a and b, such as abb>")
        return f"{word}>", word[::-1]


class Tiny(nn.Module):
    """The mean of all states so far through one layer, on top of the state; the head is tied to the embedding."""

    def __init__(self, vocab_size, width, norm):
        super().__init__()
        self.tokens, self.mix = nn.Embedding(vocab_size, width), nn.Linear(2 * width, width)
        self.norm, self.head = make_norm(norm, width), nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.tokens.weight

    def embed(self, ids):
        return self.tokens(ids)

    def step(self, h):
        count = torch.arange(1, h.shape[1] + 1, device=h.device)[:, None]
        return self.norm(h + torch.tanh(self.mix(torch.cat([h, h.cumsum(1) / count], dim=-1))))

    def readout(self, h):
        return self.head(h)


@dataclass(frozen=True, kw_only=True)
class TinyModel(Model):
    """`Tiny` by its settings."""

    width: int = 8
    norm: str = "MaxNorm"

    def build(self):
        return Tiny(self.vocab_size, self.width, self.norm)


@dataclass(frozen=True, kw_only=True)
class TinyOuro(Model):
    """Ouro's architecture from random weights."""

    def build(self):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        return OuroForCausalLM(OuroConfig(vocab_size=self.vocab_size, num_key_value_heads=2, **sizes))


def own(**changes) -> ExperimentConfig:
    """An experiment made of these, with the library's own penalty and carried states beside them."""
    config = ExperimentConfig(
        model=TinyModel(vocab_size=5, max_len=16),
        loops=OddLoops(),
        penalty=PenaltyConfig(weight=0.1, onset=2),
        terms={"next": NextChange(weight=0.5, onset=1)},
        carry=CarryConfig(share=0.5, max_loops=5, onset=1),
        data=Reverse(n_train=40, n_test=16),
        training=TrainingConfig(steps=8, batch_size=8, lr=1e-2, warmup_steps=1, log_every=2, checkpoint_every=2),
    )
    return replace(config, **changes)

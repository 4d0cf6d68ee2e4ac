"""The settings of a looped model: what all of them say, and those of the small transformer.

A model of one's own is a dataclass under `Model` whose `build` makes an nn.Module with embed, step and readout (see `protocols`):

    @dataclass(frozen=True, kw_only=True)
    class TinyModel(Model):
        width: int = 32

        def build(self) -> nn.Module:
            return Tiny(self.vocab_size, self.width)

It is then trained, resumed, penalised and analysed as the transformer is.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from looped_lib.core import checks, kinds
from looped_lib.core.checks import ConfigError
from looped_lib.core.kinds import Kind
from looped_lib.models.norms import Norm
from looped_lib.models.protocols import Trainable

NormPlacement = Literal["pre_norm", "post_norm", "sandwich_branch", "sandwich_dual"]
NormType = Literal["LayerNorm", "RMSNorm", "SimpleNorm", "DeepNorm"]  # the paper's; see `norms` for one's own
FinalNorm = Literal["as_blocks", "LayerNorm"]
InjectionKind = Literal["none", "add", "concat", "diagonal"]
InitialState = Literal["embedding", "random"]


@dataclass(frozen=True, kw_only=True)
class Model(Kind, ABC, unnamed="ModelConfig"):
    """What every looped model says of itself."""

    vocab_size: int = 15
    """Tokens; the addition task has 15 characters."""
    max_len: int = 64
    """Most positions that it reads."""

    def __post_init__(self):
        checks.whole(self, 1, "vocab_size", "max_len")

    @abstractmethod
    def build(self) -> Trainable:
        """The model with its initial weights, drawn from torch's default generator."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Model):
    """The small looped transformer. The defaults are the paper's addition model (2.4 M parameters)."""

    norm_placement: NormPlacement = "sandwich_dual"
    """Where the norms stand in each residual (see `blocks`)."""
    norm_type: str = "LayerNorm"
    """Which norm, by its class (see `norms`). DeepNorm weighs the stream in post_norm; elsewhere it is LayerNorm with its initial
    weights."""
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
    injection: InjectionKind = "none"
    """How the embedded input enters every loop again (see `injection`)."""
    initial_state: InitialState = "embedding"
    """Where the loops begin (see `initial_state`); random needs injection."""

    def __post_init__(self):
        super().__post_init__()
        checks.choice(self, norm_placement=NormPlacement, final_norm=FinalNorm)
        kinds.check(self, "norm_type", Norm)
        checks.choice(self, injection=InjectionKind, initial_state=InitialState)
        checks.whole(self, 1, "d_model", "n_heads", "d_ff", "k_layers")
        checks.whole(self, 0, "prelude_layers", "coda_layers")
        checks.number(self, 0, 1, "dropout", open_end=True)
        checks.number(self, 0, math.inf, "deepnorm_alpha", "init_std", "rms_eps", open_start=True)
        if self.d_model % self.n_heads:
            raise ConfigError(f"ModelConfig.n_heads must divide d_model ({self.d_model}), got {self.n_heads}")
        if self.initial_state == "random" and self.injection == "none":
            raise ConfigError("ModelConfig.initial_state 'random' needs an injection: without one the model never sees its input")

    def build(self) -> Trainable:
        """A `LoopedTransformer`."""
        from looped_lib.models.looped import LoopedTransformer  # it is made of this config

        return LoopedTransformer(self)

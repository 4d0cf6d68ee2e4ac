"""Input injection: what the block stack Phi is given at each loop, from the state h and the embedded input e.

    none       h
    add        h + e
    concat     A [h; e],  A [d_model x 2 d_model]                    Huginn (Geiping et al. 2025, arXiv 2502.05171)
    diagonal   abar * h + delta * B e,  abar = exp(-delta exp(a))    Parcae (Prairie et al. 2026, arXiv 2604.12946)

With injection e is constant over the loops and the state is the pair [h; e], 2 d_model wide, so that a loop stays a function of
the state alone: [h; e] -> [Phi(inject(h, e)); e].
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from looped_lib.models.config import ModelConfig
from looped_lib.models.linear import Linear

Half = Float[Tensor, "*rows d_model"]
State = Float[Tensor, "*rows width"]


class NoInjection(nn.Module):
    """Phi is given h, which is the whole state."""

    def __init__(self, config: ModelConfig):
        super().__init__()

    def start(self, h: Half, e: Half) -> State:
        """The state that holds h."""
        return h

    def moving(self, state: State) -> Half:
        """h."""
        return state

    def follow(self, h: Half, state: State) -> State:
        """The state that holds h, and beside it what `state` does."""
        return h

    def forward(self, state: State) -> Half:
        return state


class Injection(nn.Module):
    """Phi is given `mix(h, e)` of a state [h; e]."""

    def start(self, h: Half, e: Half) -> State:
        """[h; e]."""
        return torch.cat([h, e], dim=-1)

    def moving(self, state: State) -> Half:
        """h of [h; e]."""
        return state.chunk(2, dim=-1)[0]

    def follow(self, h: Half, state: State) -> State:
        """[h; e] with the e of `state`."""
        return torch.cat([h, state.chunk(2, dim=-1)[1]], dim=-1)

    def forward(self, state: State) -> Half:
        return self.mix(*state.chunk(2, dim=-1))

    def mix(self, h: Half, e: Half) -> Half:
        """What Phi is given."""
        raise NotImplementedError


class AddInjection(Injection):
    """h + e."""

    def __init__(self, config: ModelConfig):
        super().__init__()

    def mix(self, h: Half, e: Half) -> Half:
        return h + e


class ConcatInjection(Injection):
    """A [h; e], without bias, as Huginn's adapter."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.adapter = Linear(2 * config.d_model, config.d_model, bias=False)

    def mix(self, h: Half, e: Half) -> Half:
        return self.adapter(torch.cat([h, e], dim=-1))


class DiagonalInjection(Injection):
    """The state decays, the input enters: a diagonal linear system h' = A h + B e, discretised with step delta.

        A = -exp(a) < 0,  delta = softplus(b) > 0,  abar = exp(delta A) in (0, 1),        mix(h, e) = abar * h + delta * B e

    elementwise in A, delta, abar; a, b [d_model], B [d_model x d_model]. The linear map of h that is put before Phi therefore
    contracts, whatever is learned. Initially A = -1, abar = sqrt(1/5), B = identity.

    Source: Parcae's injection (arXiv 2604.12946; sandyresearch/parcae), which leaves a, b and B without weight decay; here they
    have that of all parameters.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        delta = 0.5 * math.log(5.0)  # abar = exp(-delta) = sqrt(1/5)
        self.log_a = nn.Parameter(torch.zeros(config.d_model))
        self.raw_delta = nn.Parameter(torch.full((config.d_model,), math.log(math.expm1(delta))))
        self.B = nn.Parameter(torch.eye(config.d_model))

    def mix(self, h: Half, e: Half) -> Half:
        return self.decay() * h + F.softplus(self.raw_delta) * (e @ self.B.T)

    def decay(self) -> Float[Tensor, "d_model"]:
        """abar."""
        return torch.exp(-F.softplus(self.raw_delta) * torch.exp(self.log_a))

    def radius(self) -> Float[Tensor, ""]:
        """max abar: spectral radius and norm of the linear map of h before Phi, below 1."""
        return self.decay().max()


INJECTIONS = {"none": NoInjection, "add": AddInjection, "concat": ConcatInjection, "diagonal": DiagonalInjection}

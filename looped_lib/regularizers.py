"""What may be added to the loss: a penalty on the Jacobian J of Phi at the last state, and any other term on the last two states.

    loss = (1 - w) CE + w R + sum of weight_i S_i

w and R are those of a PenaltyConfig, whose R is one of (all three in the same units, a squared gain per loop)

    squared_fro       ||J||_F^2 / N     the mean squared singular value; N = seq * d_model entries of a row
    spectral_norm     sigma_max(J)^2
    spectral_radius   rho(J)^2          its gradient is a surrogate for non-normal J (see `jacobian.spectral_radius`)

estimated by `training.jacobian_penalty`. Each S_i is a `Penalty`: a class under it, wherever it is defined, is a term.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from looped_lib.core import checks
from looped_lib.core.checks import ConfigError
from looped_lib.core.kinds import Kind

Quantity = Literal["squared_fro", "spectral_norm", "spectral_radius"]
Product = Literal["vjp", "jvp", "finite_difference"]
Stream = Float[Tensor, "batch seq d_model"]


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig:
    """Which penalty on J = dPhi/dh at the last state is added to the loss, and how it is estimated.

    `training.jacobian_penalty` says what is detached and what receives gradient.
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
    """First training step with the penalty (the paper: after warm-up)."""
    public_code: bool = False
    """Estimate exactly as the public code does (see `public_code_penalty`)."""

    def __post_init__(self):
        checks.choice(self, quantity=Quantity, product=Product)
        checks.number(self, 0, 1, "weight", open_end=True)
        checks.number(self, 0, 1, "share", open_start=True)
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

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Older configs have here what `terms` of an experiment are now (see `config`)."""
        if values.get("l2_weight"):
            raise ConfigError("PenaltyConfig.l2_weight is a term of its own: LastChange in ExperimentConfig.terms")
        return {name: value for name, value in values.items() if name not in ("l2_weight", "last_change")}


def public_code_penalty() -> PenaltyConfig:
    """The penalty of the authors' public code, to reproduce its results (`onset` is its 2,000 steps of warm-up).

    One Gaussian v, normalised over the whole batch tensor, goes through `iterations` VJPs, v <- v^T J / ||v^T J||, none
    detached, with dropout on and redrawn in each; R = ||v^T J||^2 of the last. With one iteration v is uniform on the
    unit sphere of all N_all = batch * N entries, so E[R] = ||J||_F^2 / N_all with J of the whole batch: what
    squared_fro gives on the same rows. With many iterations it tends to the squared spectral radius of the worst row.
    """
    return PenaltyConfig(weight=0.1, share=1.0, public_code=True)


@dataclass(frozen=True, kw_only=True)
class Penalty(Kind, ABC):
    """A term weight * value of the loss, from training step `onset` on. A config names it by its class (see `kinds`)."""

    weight: float = 1.0
    """Of the term; 0 leaves it out."""
    onset: int = 0
    """First training step with the term."""

    def __post_init__(self):
        checks.number(self, 0, math.inf, "weight")
        checks.whole(self, 0, "onset")

    @abstractmethod
    def value(self, phi: Callable[[Stream], Stream], h_T: Stream, h_before: Stream) -> Float[Tensor, ""]:
        """S at the last states h_T = phi(h_before), both with gradient; phi, without dropout, is one loop as a map of h alone."""


class LastChange(Penalty):
    """Mean over tokens of ||h_T - h_{T-1}||, with gradient into both (0 at a token that did not move): the paper's baseline."""

    def value(self, phi: Callable[[Stream], Stream], h_T: Stream, h_before: Stream) -> Float[Tensor, ""]:
        return torch.linalg.vector_norm(h_T - h_before, dim=-1).mean()


class RelativeChange(Penalty):
    """Mean over tokens of ||h_T - h_{T-1}||^2 / ||h_T||^2, with gradient into both (arXiv 2608.18222, with weight 1)."""

    def value(self, phi: Callable[[Stream], Stream], h_T: Stream, h_before: Stream) -> Float[Tensor, ""]:
        return ((h_T - h_before).square().sum(-1) / h_T.square().sum(-1)).mean()

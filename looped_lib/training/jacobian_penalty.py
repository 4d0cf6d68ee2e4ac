"""The penalty R on the Jacobian J of Phi at the last state, a mean over the rows it is estimated on (see `regularizers`).

What is constant: h_T (R moves Phi, not the trajectory that led to h_T), the probe vectors and every power iteration but
the last. What receives gradient: the parameters of Phi, through the last product with J. Dropout is off while J is
estimated.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from looped_lib.core import streams
from looped_lib.dynamics.jacobian import (
    Product,
    Step,
    Stream,
    finite_difference,
    jvp,
    random_normal,
    random_signs,
    spectral_norm,
    spectral_radius,
    squared_fro,
    vjp,
)
from looped_lib.models.looped import evaluating
from looped_lib.models.state import loop_at
from looped_lib.regularizers import PenaltyConfig

PRODUCTS: dict[str, Product] = {"vjp": vjp, "jvp": jvp, "finite_difference": finite_difference}
_POWER_ITERATIONS = {"spectral_norm": spectral_norm, "spectral_radius": spectral_radius}


class JacobianPenalty:
    """R of one training step. Nothing in it waits for the device.

    Probe vectors are a pure function of (seed, training_step, rank). With `config.persistent`, power iterations start
    from where the previous call of the same rank ended: its rows were other problems, so this is a good guess, not a
    continuation, and it needs batches of one shape. Those vectors are the only state.
    """

    def __init__(self, config: PenaltyConfig, seed: int):
        self.config = config
        self.seed = seed
        self._vectors: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module, h_T: Stream, training_step: int, rank: int = 0) -> Float[Tensor, ""]:
        """R at states h_T of `model` (anything with `step(h)`), on ceil(share * batch) evenly spaced rows.

        J is that of the moving part of the state (see `state`).

        Evenly, because the first rows of a batch may be carried ones: both kinds are penalised in proportion.

        `rank` numbers whatever estimates R in the same training step: processes, and the parts of an accumulated batch.
        """
        step, h = loop_at(model, _evenly_spaced(h_T.detach(), self.config.share))
        if self.config.public_code:
            probe = random_normal(h, self._generator(h, training_step, rank))
            return _public_code(step, h, probe, self.config.iterations)
        with evaluating(model):
            return self.of(step, h, training_step, rank)

    def of(
        self, step: Step, h: Stream, training_step: int, rank: int = 0, tokens: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, ""]:
        """R of one loop `step` at all rows of h. With `tokens`, J is that of the marked positions only (the others are padding):
        its other rows and columns are left out, and N counts the marked entries of each row."""
        h = h.detach()
        generator = self._generator(h, training_step, rank)
        if tokens is None:
            return self._mean(step, h, None, generator, f"vector.{rank}")
        marked = tokens[..., None].to(h.dtype)

        def block(x: Stream) -> Stream:
            return step(torch.where(tokens[..., None], x, h)) * marked

        return self._mean(block, h, marked, generator, f"vector.{rank}")

    def state(self) -> dict[str, Tensor]:
        """The persistent vectors, one per rank that has called; empty unless `config.persistent`."""
        return dict(self._vectors)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self._vectors = dict(state)

    def _mean(self, step: Step, h: Stream, marked: Tensor | None, generator: torch.Generator, name: str) -> Tensor:
        c = self.config
        product = PRODUCTS[c.product]
        if c.quantity == "squared_fro":
            probe = random_signs(h, generator)
            entries = h[0].numel() if marked is None else marked.sum((1, 2)) * h.shape[-1]
            return (squared_fro(step, h, product, probe if marked is None else probe * marked) / entries).mean()
        start = random_normal(h, generator) if name not in self._vectors else self._vectors[name].to(h)
        if start.shape != h.shape:
            raise ValueError(
                f"the persistent vectors have shape {tuple(start.shape)}, the states {tuple(h.shape)}: "
                "PenaltyConfig.persistent needs batches of one shape"
            )
        start = start if marked is None else start * marked
        value, vector = _POWER_ITERATIONS[c.quantity](step, h, product, start, c.iterations)
        if c.persistent:
            self._vectors[name] = vector
        return (value**2).mean()

    def _generator(self, h: Stream, training_step: int, rank: int) -> torch.Generator:
        return torch.Generator(h.device).manual_seed(streams.seed_of(streams.PROBES, self.seed, training_step, rank))


def _evenly_spaced(h: Stream, share: float) -> Float[Tensor, "row seq d_model"]:
    rows = len(h)
    n = math.ceil(share * rows)
    return h if n == rows else h[torch.arange(n, device=h.device) * rows // n]


def _public_code(step: Step, h: Stream, v: Stream, iterations: int) -> Tensor:
    v = v / torch.linalg.vector_norm(v)
    for _ in range(iterations - 1):
        v = vjp(step, h, v)
        v = v / torch.linalg.vector_norm(v)
    return (vjp(step, h, v) ** 2).sum()

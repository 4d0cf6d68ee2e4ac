"""What the laboratory asks of a looped model.

    Looped       embed, step, readout: enough for trajectories, depth curves, fixed-point exits, spectra and the explorer
    Trainable    and is an nn.Module: enough for training, penalties, carried states and resuming
    Cached       and takes the keys and values of earlier positions: shared prefixes in depth curves, generation with exits

A model may offer two things more. `n_moving`: how many leading entries of the state a loop moves, where not all (see `state`).
`before_norm` and `loop_norm` with step(h) = loop_norm(before_norm(h)): the growth of the state behind the norm that hides it.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from looped_lib.models.cache import Cache, Slot

Ids = Int[Tensor, "batch seq"]
State = Float[Tensor, "batch seq width"]
Logits = Float[Tensor, "batch seq vocab"]


@runtime_checkable
class Looped(Protocol):
    """A model whose middle is applied again and again. A state at a position depends on the tokens up to it alone."""

    def embed(self, ids: Ids) -> State:
        """h_0 of token ids."""

    def step(self, h: State) -> State:
        """Phi(h): exactly one loop."""

    def readout(self, h: State) -> Logits:
        """Next-token logits at every position of h."""


@runtime_checkable
class Trainable(Looped, Protocol):
    """A looped model that is an nn.Module. Its step is differentiable twice where a Jacobian is penalised by exact products."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As nn.Module's."""

    def state_dict(self) -> dict[str, Tensor]:
        """As nn.Module's."""

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> Any:
        """As nn.Module's."""


@runtime_checkable
class Cached(Looped, Protocol):
    """A looped model whose attention goes on from cached keys and values (see `cache`)."""

    attention_layers: tuple[int, int, int]
    """Attention layers before the loops, in Phi, and after the loops: each has a slot, those of Phi one for every loop."""

    def embed(self, ids: Ids, cache: Cache | None = None) -> State:
        """h_0 of the positions that follow those in the cache."""

    def step(self, h: State, slots: list[Slot] | None = None) -> State:
        """Phi(h) of these positions, given this loop's slots."""

    def readout(self, h: State, slots: list[Slot] | None = None) -> Logits:
        """Their logits, given the slots of the layers after the loops."""

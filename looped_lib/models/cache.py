"""Key/value cache of a looped transformer: one slot per (loop, layer), because every loop sees other keys and values.

Memory is 2 * n_slots * batch * seq * d_model elements, n_slots = prelude + n_loops * k_layers + coda: a looped model saves
parameters, not cache.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class Slot:
    """Keys and values of one attention layer at one loop, in buffers of the final size, filled up to `length`."""

    seq_max: int
    length: int = 0
    keys: Tensor | None = None
    values: Tensor | None = None

    def append(
        self, k: Float[Tensor, "batch head seq d_head"], v: Float[Tensor, "batch head seq d_head"]
    ) -> tuple[Float[Tensor, "batch head seq_all d_head"], Float[Tensor, "batch head seq_all d_head"]]:
        """Store the new positions; return keys and values of all positions so far."""
        end = self.length + k.shape[2]
        if end > self.seq_max:
            raise ValueError(f"the cache holds {self.seq_max} positions, but position {end} was asked for")
        if self.keys is None:
            shape = (k.shape[0], k.shape[1], self.seq_max, k.shape[3])
            self.keys, self.values = k.new_empty(shape), v.new_empty(shape)
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def branch(self, rows: Int[Tensor, "row"], room: int) -> "Slot":
        """A new slot whose row i continues row `rows[i]` of this one, with room for `room` more positions."""
        child = Slot(self.length + room)
        if self.length:
            child.append(self.keys[rows, :, : self.length], self.values[rows, :, : self.length])
        return child


@dataclass
class Cache:
    """All slots of one generation: `prelude[layer]`, `loops[t][layer]`, `coda[layer]`."""

    prelude: list[Slot]
    loops: list[list[Slot]]
    coda: list[Slot]
    positions: int = field(default=0)  # how many positions have been embedded so far

    @classmethod
    def empty(cls, n_loops: int, k_layers: int, prelude: int, coda: int, seq_max: int) -> "Cache":
        """A cache with no positions in it, for `n_loops` loops of `k_layers` layers and up to `seq_max` positions."""

        def slots(n: int) -> list[Slot]:
            return [Slot(seq_max) for _ in range(n)]

        return cls(slots(prelude), [slots(k_layers) for _ in range(n_loops)], slots(coda))

    def nbytes(self) -> int:
        """Bytes held by the buffers allocated so far."""
        every = [*self.prelude, *self.coda, *(slot for loop in self.loops for slot in loop)]
        return sum(2 * s.keys.numel() * s.keys.element_size() for s in every if isinstance(s.keys, torch.Tensor))

"""Key/value caches of a looped decoder, for `generate(past_key_values=...)`.

Loop t of layer i sees other keys and values than loop t - 1 did, so a full cache has one slot per loop and layer, slot t N + i.
Bytes a token: 2 * n_loops * N * kv heads * head_dim * element size; sharing the last loop divides that by n_loops.

    LoopCache       every loop's own keys and values: decoding is what a forward pass over the whole text gives
    LastLoopCache   only those of each token's last loop, which all loops of later tokens share: an approximation that keeps
                    accuracy (the Ouro paper, arXiv 2510.25741). The prompt itself is computed in full.
"""

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class LoopedCache(Cache):
    """What the model asks of a cache: `begin` before new tokens, `open_loop` before each loop of them, `close` after the last."""

    may_stop_early = False  # whether loops may end before n_loops without leaving gaps

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.loop = 0

    def begin(self, n_loops: int) -> None:
        """New tokens follow, for at most `n_loops` loops."""

    def open_loop(self, t: int, reading: Bool[Tensor, "batch seq"] | None = None) -> None:
        """The updates that follow are those of loop t. `reading` marks the new positions that have not been read out yet."""
        self.loop = t

    def close(self) -> None:
        """All loops of the new positions have run."""

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(2 * slot.keys.numel() * slot.keys.element_size() for slot in self.layers if slot.is_initialized)


class LoopCache(LoopedCache):
    """One slot per loop and layer. ValueError if a later call runs another number of loops than the first."""

    def __init__(self, n_layers: int):
        super().__init__()
        self.n_layers = n_layers
        self.n_loops: int | None = None  # of the text so far

    def begin(self, n_loops: int) -> None:
        if self.get_seq_length() and n_loops != self.n_loops:
            raise ValueError(
                f"this cache holds {self.n_loops} loops of the text so far, but {n_loops} were asked for on its next tokens: "
                "keep n_loops for the whole text, or start with an empty cache"
            )
        self.n_loops = n_loops

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return super().update(key_states, value_states, self.loop * self.n_layers + layer_idx)


class LastLoopCache(LoopedCache):
    """One slot per layer, with the keys and values of the loop each position was read out at."""

    may_stop_early = True

    def __init__(self) -> None:
        super().__init__()
        self.reading: Tensor | None = None
        self.new: dict[int, tuple[Tensor, Tensor]] = {}

    def open_loop(self, t: int, reading: Bool[Tensor, "batch seq"] | None = None) -> None:
        super().open_loop(t)
        self.reading = reading

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        kept = key_states, value_states
        if self.loop and self.reading is not None:
            newest = self.reading[:, None, :, None]
            kept = tuple(torch.where(newest, x, old) for x, old in zip(kept, self.new[layer_idx], strict=True))
        self.new[layer_idx] = kept
        if layer_idx >= len(self.layers) or not self.layers[layer_idx].is_initialized:
            return key_states, value_states
        slot = self.layers[layer_idx]
        return torch.cat([slot.keys, key_states], -2), torch.cat([slot.values, value_states], -2)

    def close(self) -> None:
        for layer, (keys, values) in sorted(self.new.items()):
            super().update(keys, values, layer)
        self.new, self.reading = {}, None

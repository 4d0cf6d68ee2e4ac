"""Texts that share a beginning, looped together: several tokens of each in one call, read out at several depths and exits.

The state of a token after t loops does not depend on how many loops follow. So depths that have written the same text so far are
one row, whose keys and values of loop t serve every depth of at least t. A row runs for as many loops as its deepest reader.

A call takes the tokens of a row that are not cached yet, and drafted tokens behind them, and gives what each depth says after
every one of them. Rows stand at the left edge of their buffers: a token's place in the buffer is its position, padding is on the
right, and a rejected draft is written over by what comes in its place, before anything has seen it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from looped_lib.ouro.evaluate.stops import Leaving, Stop, in_order, loops_of
from looped_lib.ouro.model.cache import LoopedCache
from looped_lib.ouro.model.exits import Exit
from looped_lib.ouro.model.gate import Stream
from looped_lib.ouro.model.modeling import Loops, OuroForCausalLM

SPARE = 16  # positions a buffer grows by, at least


@dataclass
class Branch:
    """A text that one or more stops of a problem have written so far."""

    problem: int
    """Index of the prompt."""
    stops: tuple[Stop, ...]
    """Loop counts and exits that wrote it."""
    text: list[int]
    """Prompt and answer so far."""
    draft: list[int] = field(default_factory=list)
    """Tokens that may follow."""
    cached: int = 0
    """Tokens at the front of the text whose keys and values are cached."""

    @property
    def loops(self) -> int:
        """How many loops it needs."""
        return max(map(loops_of, self.stops))

    @property
    def loops_apart(self) -> int:
        """How many its stops would need in texts of their own."""
        return sum(map(loops_of, self.stops))


class BranchCache(LoopedCache):
    """Keys and values of rows, deepest first, in a buffer per loop and layer that holds the rows which run that loop."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[list[tuple[Tensor, Tensor]]] = []  # [loop][layer], of [row, head, position, d_head]
        self.positions: Tensor | None = None  # of the call's tokens

    def select(self, rows: list[int], loops: list[int]) -> None:
        """Go on with these rows, the deepest first and some perhaps twice, the k-th of them for `loops[k]` loops."""
        self.buffers = self.buffers[: loops[0] if loops else 0]
        for t, layers in enumerate(self.buffers):
            kept = [row for row, n in zip(rows, loops, strict=True) if n > t]
            if layers and kept != list(range(len(layers[0][0]))):
                index = torch.tensor(kept, device=layers[0][0].device)
                self.buffers[t] = [(keys[index], values[index]) for keys, values in layers]

    def place(self, positions: Int[Tensor, "row seq"]) -> None:
        """The updates that follow are those of tokens at these positions."""
        self.positions, self.seen = positions, int(positions.max()) + 1

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write, and give back all positions up to the last one of the call."""
        while self.loop >= len(self.buffers):
            self.buffers.append([])
        layers, rows = self.buffers[self.loop], len(key_states)
        if layer_idx == len(layers):
            layers.append((key_states.new_empty(rows, *key_states.shape[1:2], 0, key_states.shape[-1]),) * 2)
        index = torch.arange(rows, device=key_states.device)[:, None]
        full = []
        for buffer, new in zip(layers[layer_idx], (key_states, value_states), strict=True):
            if (short := self.seen - buffer.shape[2]) > 0:
                grown = buffer.new_zeros(*buffer.shape[:2], short + SPARE, buffer.shape[3])  # masked, but it must be finite
                buffer = torch.cat([buffer, grown], 2)
            buffer[index, :, self.positions[:rows]] = new.transpose(1, 2)
            full.append(buffer)
        layers[layer_idx] = tuple(full)
        return tuple(buffer[:, :, : self.seen] for buffer in full)


def read(model: OuroForCausalLM, branches: list[Branch], cache: BranchCache) -> list[dict[Stop, list[int]]]:
    """For each branch and each of its stops, the likeliest token after its text and after each drafted token.

    `branches` stand deepest first, as the rows of the cache do. Afterwards their texts and drafts are cached.
    """
    new = [branch.text[branch.cached :] + branch.draft for branch in branches]
    width, device = max(map(len, new)), model.device
    ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in new], device=device)
    positions = torch.tensor([b.cached for b in branches], device=device)[:, None] + torch.arange(width, device=device)
    answers = 1 + max(len(branch.draft) for branch in branches)
    first = torch.tensor([len(b.text) - 1 - b.cached for b in branches], device=device)
    places = (first[:, None] + torch.arange(answers, device=device)).clamp_max(width - 1)
    cache.place(positions)
    h = model.embed(ids)
    seen = torch.arange(cache.seen, device=device) <= positions[:, None, :, None]
    mask = torch.zeros(seen.shape, dtype=h.dtype, device=device).masked_fill_(~seen, torch.finfo(h.dtype).min)
    cos, sin = model.model.rotary_emb(h, positions)
    said, exits = [], _Exiting(model, branches)
    for t in range(branches[0].loops):
        rows = sum(branch.loops > t for branch in branches)
        loops = Loops((cos[:rows], sin[:rows]), mask[:rows], positions[:rows], cache)
        before, h = h[:rows], model.model.loop(h[:rows], t, loops)
        if readers := [row for row in range(rows) if t + 1 in branches[row].stops]:
            index = torch.tensor(readers, device=device)[:, None]
            said.append((t + 1, readers, model.readout(h[index, places[index[:, 0]]]).argmax(-1)))
        exits.look(t, before, h, places)
    out: list[dict[Stop, list[int]]] = [{} for _ in branches]
    for stop, readers, tokens in [*said, *exits.said()]:  # only now does the device have to be waited for
        for row, line in zip(readers, tokens.tolist(), strict=True):
            if stop in branches[row].stops:
                out[row][stop] = line[: 1 + len(branches[row].draft)]
    return out


class _Exiting:
    """What the exits of some branches say, which read each place out at a loop of its own."""

    def __init__(self, model: OuroForCausalLM, branches: list[Branch]):
        exits = [{stop for stop in branch.stops if isinstance(stop, Exit)} for branch in branches]
        self.model, self.stops = model, in_order(set().union(*exits))
        self.rows = [row for row, mine in enumerate(exits) if mine]
        self.leaving = Leaving(model, self.stops)
        self.tokens: Tensor | None = None

    def look(self, t: int, before: Stream, h: Stream, places: Int[Tensor, "row place"]) -> None:
        """Read out what exits after loop t. The rows of h are those that run it, the deepest first."""
        rows = [row for row in self.rows if row < len(h)]
        if not rows:
            return
        index = torch.tensor(rows, device=h.device)[:, None]
        at = places[index[:, 0]]
        leaves, said = self.leaving.look(t, before[index, at], h[index, at]), self.model.readout(h[index, at]).argmax(-1)
        if self.tokens is None:
            self.tokens = said.expand(len(self.stops), *said.shape).clone()
        self.tokens[:, : len(rows)] = said.where(leaves, self.tokens[:, : len(rows)])

    def said(self) -> Iterator[tuple[Stop, list[int], Int[Tensor, "row place"]]]:
        """Of every exit, the rows and what it says there, as if all branches had it."""
        for k, stop in enumerate(self.stops):
            yield stop, self.rows, self.tokens[k]

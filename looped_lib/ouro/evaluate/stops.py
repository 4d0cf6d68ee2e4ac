"""Where loops end: at a loop count, or at an exit. One pass over the loops serves many stops.

What a token is read out at depends on the tokens before it only, at an exit as at a loop count: `dynamics.depth`'s proof holds,
and greedy text with an exit is right exactly when each argmax, read at its own tau, is.
"""

from collections.abc import Collection

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from looped_lib.ouro.model.exits import Criteria, Exit, reached
from looped_lib.ouro.model.modeling import OuroForCausalLM

Stop = int | Exit


def loops_of(stop: Stop) -> int:
    """The loops it may take."""
    return stop.loops if isinstance(stop, Exit) else stop


def in_order(stops: Collection[Stop]) -> list[Stop]:
    """Each once: loop counts, ascending, then exits."""
    exits = sorted({s for s in stops if isinstance(s, Exit)}, key=lambda e: (e.by, e.threshold, e.loops))
    return [*sorted({s for s in stops if not isinstance(s, Exit)}), *exits]


class Leaving:
    """Which of the same positions each stop reads out, loop after loop."""

    def __init__(self, model: OuroForCausalLM, stops: list[Stop]):
        self.stops, self.running = stops, None
        names = {stop.by for stop in stops if isinstance(stop, Exit)}
        self.criteria = Criteria(names, model.model.exit_gate, model.lm_head)

    def look(
        self, t: int, before: Float[Tensor, "*position d_model"], h: Float[Tensor, "*position d_model"]
    ) -> Bool[Tensor, "stop ..."]:
        """Those after loop t, from 0, which made h of `before`. Rows at the end that are no longer there are forgotten."""
        scores = self.criteria.look(t, before, h)
        now = [h.new_full(h.shape[:-1], loops_of(stop) == t + 1, dtype=torch.bool) for stop in self.stops]
        for k, stop in enumerate(self.stops):
            if isinstance(stop, Exit):
                now[k] |= reached(stop.by, scores[stop.by], stop.threshold)
        leaves = torch.stack(now)
        if self.running is not None:
            leaves &= self.running[:, : len(h)]
        self.running = ~leaves if self.running is None else self.running[:, : len(h)] & ~leaves
        return leaves

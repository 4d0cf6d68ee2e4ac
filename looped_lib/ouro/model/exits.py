"""Which loop each position is read out at.

A criterion is a number of each position after each loop; a position exits after the first loop where it reaches a threshold:

    gate       p_1 + .. + p_t >= threshold, the exit probabilities of `gate`; at 1 and above it never exits
    residual   ||h_t - h_{t-1}|| / ||h_{t-1}|| <= threshold
    kl         KL(softmax z_t || softmax z_{t-1}) <= threshold nats, of the readouts z of two loops, from the second loop on
    entropy    H(softmax z_t) <= threshold nats
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from looped_lib.models.lengths import token_norm
from looped_lib.ouro.model.gate import Stream

Criterion = Literal["gate", "residual", "kl", "entropy"]
CRITERIA: tuple[str, ...] = get_args(Criterion)
LOGITS = 2**24  # at a time: 64 MiB in float32
Scores = dict[str, Float[Tensor, "*position"]]


@dataclass(frozen=True)
class Exit:
    """Read each position out at its first loop where a criterion reaches its threshold, or else at the last."""

    by: Criterion
    """The criterion."""
    threshold: float
    """What it has to reach."""
    loops: int
    """The last loop."""

    def __str__(self) -> str:
        return f"{self.by}={self.threshold:g}"


class Criteria:
    """Some of the criteria of the same positions, loop after loop."""

    def __init__(self, names: Collection[str], gate: Callable[[Tensor], Tensor], head: nn.Linear):
        self.names, self.gate, self.head = set(names), gate, head

    def look(self, t: int, before: Float[Tensor, "*position d_model"], h: Float[Tensor, "*position d_model"]) -> Scores:
        """Those after loop t, from 0, which made h of `before`. Rows at the end that are no longer there are forgotten."""
        found = {}
        if "gate" in self.names:
            gate = self.gate(h)
            if t == 0:
                self.survival, self.cumulative = torch.ones_like(gate), torch.zeros_like(gate)
            survival = self.survival[: len(gate)]
            self.cumulative = self.cumulative[: len(gate)] + gate * survival  # float32: in bfloat16 it reaches 1 early
            self.survival = survival * (1 - gate)
            found["gate"] = self.cumulative
        if "residual" in self.names:
            found["residual"] = token_norm(h - before) / token_norm(before)
        if self.names & {"kl", "entropy"}:
            found |= self._of_readouts(t, before, h)
        return found

    def _of_readouts(self, t: int, before: Tensor, h: Tensor) -> Scores:
        found: dict[str, list[Tensor]] = {"kl": [], "entropy": []}
        at_once = max(1, LOGITS // self.head.out_features)
        for new, old in zip(h.flatten(0, -2).split(at_once), before.flatten(0, -2).split(at_once), strict=True):
            log_p = self._log_p(new)
            found["entropy"].append(-(log_p.exp() * log_p).sum(-1))
            if "kl" in self.names:
                kl = (log_p.exp() * (log_p - self._log_p(old))).sum(-1) if t else torch.full_like(log_p[:, 0], torch.inf)
                found["kl"].append(kl)
        return {name: torch.cat(found[name]).view(h.shape[:-1]) for name in self.names & found.keys()}

    def _log_p(self, h: Float[Tensor, "position d_model"]) -> Float[Tensor, "position vocab"]:
        return self.head(h).float().log_softmax(-1)


def reached(by: str, score: Float[Tensor, "*position"], threshold: float) -> Tensor:
    """Where a criterion is at its threshold."""
    return (score >= threshold) & (threshold < 1) if by == "gate" else score <= threshold


class Exits:
    """Which loop each position of a call is read out at: the first where one of `thresholds`, by criterion, is reached.

    loops     tau of every position; of one that has not exited, the last loop so far
    chosen    h_tau
    A position that has exited is looped on, for those that have not.
    """

    def __init__(self, thresholds: dict[str, float], criteria: Criteria):
        self.thresholds, self.criteria = thresholds, criteria
        self.reading: Tensor | None = None  # positions not read out yet; all of them before the first loop

    def look(self, t: int, before: Stream, h: Stream) -> None:
        """Read out after loop t what exits there."""
        if t == 0:
            self.reading = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
            self.loops, self.chosen = torch.zeros_like(self.reading, dtype=torch.long), torch.zeros_like(h)
        self.loops = torch.where(self.reading, t + 1, self.loops)
        self.chosen = torch.where(self.reading[..., None], h, self.chosen)
        for by, score in self.criteria.look(t, before, h).items():
            self.reading = self.reading & ~reached(by, score, self.thresholds[by])

    @property
    def all_done(self) -> bool:
        """Whether every position has exited."""
        return not self.reading.any()

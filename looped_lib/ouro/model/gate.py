"""What the exit gate decides: after which loop a position is read out, and how much each loop counts in pre-training.

The gate gives lambda_t = sigmoid(w h_t + b), and p_t = lambda_t prod_{j<t} (1 - lambda_j) the probability to exit after loop t;
the last loop takes the rest (arXiv 2510.25741).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from looped_lib.models.lengths import token_norm

Stream = Float[Tensor, "batch seq d_model"]
PerToken = Float[Tensor, "batch seq"]


class Exits:
    """Which loop each position is read out at. A position that has exited is looped on, for those that have not.

    loops     tau of every position; of one that has not exited, the last loop so far
    chosen    h_tau
    """

    def __init__(self, threshold: float, residual: float | None):
        self.threshold, self.residual = threshold, residual
        self.reading: Tensor | None = None  # positions not read out yet; all of them before the first loop

    def look(self, t: int, before: Stream, h: Stream, gate: PerToken) -> None:
        """Read out after loop t what exits there."""
        if t == 0:
            self.reading = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
            self.loops, self.chosen = torch.zeros_like(self.reading, dtype=torch.long), torch.zeros_like(h)
            self.cumulative = torch.zeros_like(gate)  # float32: in bfloat16 a saturated gate reaches 1 early
            self.survival = torch.ones_like(gate)
        self.cumulative = self.cumulative + gate * self.survival
        self.survival = self.survival * (1 - gate)
        exits = torch.zeros_like(self.reading)
        if self.threshold < 1:
            exits = exits | (self.cumulative >= self.threshold)
        if self.residual is not None:
            exits = exits | (token_norm(h - before) / token_norm(before) <= self.residual)
        self.loops = torch.where(self.reading, t + 1, self.loops)
        self.chosen = torch.where(self.reading[..., None], h, self.chosen)
        self.reading = self.reading & ~exits

    @property
    def all_done(self) -> bool:
        """Whether every position has exited."""
        return not self.reading.any()


def exit_probabilities(lambdas: list[PerToken]) -> Float[Tensor, "loop batch seq"]:
    """p_t of every loop from its gates; they sum to 1 over the loops, as the last loop takes the rest."""
    survival, p = torch.ones_like(lambdas[0]), []
    for gate in lambdas[:-1]:
        p.append(gate * survival)
        survival = survival * (1 - gate)
    return torch.stack([*p, survival])


def mixture(
    losses: Float[Tensor, "loop batch label"],
    p: Float[Tensor, "loop batch label"],
    labels: Int[Tensor, "batch seq"],
    entropy_weight: float,
    num_items: Tensor | int | None,
) -> Float[Tensor, ""]:
    """sum_t p_t L_t - beta H(p), over the labels that count."""
    log_p = p.clamp_min(torch.finfo(p.dtype).tiny).log()  # a saturated gate gives p = 0, where log p has no finite gradient
    entropy = -(p * log_p).sum(0)
    counts = labels[:, 1:] != -100
    total = (((p * losses).sum(0) - entropy_weight * entropy) * counts).sum()
    return total / (counts.sum() if num_items is None else num_items)

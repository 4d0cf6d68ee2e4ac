"""What the exit gate says, and how much each loop counts by it in pre-training.

The gate gives lambda_t = sigmoid(w h_t + b), and p_t = lambda_t prod_{j<t} (1 - lambda_j) the probability to exit after loop t;
the last loop takes the rest (arXiv 2510.25741).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Stream = Float[Tensor, "batch seq d_model"]
PerToken = Float[Tensor, "batch seq"]


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

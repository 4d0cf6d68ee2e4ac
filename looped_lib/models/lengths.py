"""How long a state is: of each token, or of a whole row of tokens. In at least float32, whatever the state's precision."""

import torch
from jaxtyping import Float
from torch import Tensor


def token_norm(h: Float[Tensor, "*more d_model"]) -> Float[Tensor, "*more"]:
    """Euclidean norm over d_model."""
    return torch.linalg.vector_norm(h, dim=-1, dtype=_at_least_float32(h))


def row_norm(h: Float[Tensor, "*more seq d_model"]) -> Float[Tensor, "*more"]:
    """Euclidean norm over all N = seq * d_model entries of a row. Its gradient at exactly 0 is 0."""
    return torch.linalg.vector_norm(h, dim=(-2, -1), dtype=_at_least_float32(h))


def _at_least_float32(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)

"""What of a looped model's state a loop moves.

A state may hold something beside what it moves: with input injection it is [h; e], the moving h and the constant e (`injection`).
A model says so by `n_moving`, the number of leading entries of the last axis that move; without it all do. As a function of the
whole state a loop is autonomous, which is all that carrying, caching and depth curves need. Norms, residuals and Jacobians are
of the moving part alone: J is dPhi/dh [d_model x d_model per position] at constant e. That of the whole state has the eigenvalue
1, d_model times, because e stays.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Stream = Float[Tensor, "batch seq d_model"]


def moving(model: nn.Module, state: Float[Tensor, "*more width"]) -> Float[Tensor, "*more d_model"]:
    """h, the part of the state that a loop moves."""
    return state[..., : getattr(model, "n_moving", state.shape[-1])]


def held(model: nn.Module, state: Float[Tensor, "*more width"]) -> Float[Tensor, "*more rest"]:
    """What a loop leaves as it is: nothing (width 0) where nothing is injected."""
    return state[..., getattr(model, "n_moving", state.shape[-1]) :]


def loop_at(model: nn.Module, state: Float[Tensor, "batch seq width"]) -> tuple[Callable[[Stream], Stream], Stream]:
    """(Phi as a map of h alone with the rest held as in `state`, h): what a Jacobian is taken of, and where."""
    h, rest = moving(model, state), held(model, state)
    if rest.shape[-1] == 0:
        return model.step, h
    return lambda x: moving(model, model.step(torch.cat([x, rest], dim=-1))), h

"""What of a looped model's state a loop moves.

A state may hold something beside what it moves: with input injection it is [h; e], the moving h and the constant e (`injection`).
A model says so by `n_moving`, the number of leading entries of the last axis that move; without it all do. As a function of the
whole state a loop is autonomous, which is all that carrying, caching and depth curves need. Norms, residuals and Jacobians are
of the moving part alone: J is dPhi/dh [d_model x d_model per position] at constant e. That of the whole state has the eigenvalue
1, d_model times, because e stays.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from looped_lib.models.protocols import Trainable

Stream = Float[Tensor, "batch seq d_model"]


def moving(model: nn.Module, state: Float[Tensor, "*more width"]) -> Float[Tensor, "*more d_model"]:
    """h, the part of the state that a loop moves."""
    return state[..., : getattr(model, "n_moving", state.shape[-1])]


def held(model: nn.Module, state: Float[Tensor, "*more width"]) -> Float[Tensor, "*more rest"]:
    """What a loop leaves as it is: nothing (width 0) where nothing is injected."""
    return state[..., getattr(model, "n_moving", state.shape[-1]) :]


def with_moving(
    model: nn.Module, h: Float[Tensor, "batch seq d_model"], state: Float[Tensor, "batch seq width"]
) -> Float[Tensor, "batch seq width"]:
    """The state that moves h and holds what `state` holds."""
    rest = held(model, state)
    return torch.cat([h, rest], dim=-1) if rest.shape[-1] else h


def resumed(
    model: Trainable, state: Float[Tensor, "batch seq width"], ids: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq width"]:
    """`state` as today's weights would hold it: h stays; what is held is that of `ids` again, with gradient."""
    return with_moving(model, moving(model, state), model.embed(ids)) if held(model, state).shape[-1] else state


def loop_at(model: nn.Module, state: Float[Tensor, "batch seq width"]) -> tuple[Callable[[Stream], Stream], Stream]:
    """(Phi as a map of h alone with the rest held as in `state`, h): what a Jacobian is taken of, and where."""
    h = moving(model, state)
    if held(model, state).shape[-1] == 0:
        return model.step, h
    return lambda x: moving(model, model.step(with_moving(model, x, state))), h

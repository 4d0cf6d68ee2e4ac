"""Anderson acceleration of h <- Phi(h), position by position.

With g_j = Phi(x_j) - x_j, the next state mixes the images of the last m + 1 states so that their moves cancel best:

    x_{k+1} = sum_j alpha_j Phi(x_j),    alpha = argmin ||sum_j alpha_j g_j||,  sum_j alpha_j = 1,  j = k - m, ..., k

(type II, Walker and Ni 2011). m = 0 is the plain loop, x_{k+1} = Phi(x_k). Every position has coefficients of its own, from its
own past only: with one set for the whole sequence a character would influence those before it, and a teacher-forced pass would
no longer be what generation does.

Only where the text is `near` rest are states mixed. Before that the plain loop finds which fixed point a problem belongs to (the
input is not injected again, so it is in the state alone), and mixing early states sends it to another: see runs/LOG.md.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from looped_lib.dynamics.jacobian import Stream

_RIDGE = 1e-8  # relative to the trace of the normal equations: keeps alpha bounded where the past moves are parallel


class Iterate(NamedTuple):
    """x_k, and the last images Phi(x_j) and moves g_j, oldest first."""

    x: Stream
    images: tuple[Stream, ...] = ()
    moves: tuple[Stream, ...] = ()

    def map(self, f: Callable[[Stream], Stream]) -> "Iterate":
        """f of every tensor in it: a choice of rows, say."""
        return Iterate(f(self.x), tuple(map(f, self.images)), tuple(map(f, self.moves)))

    def followed_by(self, other: "Iterate") -> "Iterate":
        """The positions of `self`, then those of `other`, which has come equally far."""
        pairs = (zip(a, b, strict=True) for a, b in ((self.images, other.images), (self.moves, other.moves)))
        images, moves = (tuple(torch.cat(p, dim=1) for p in each) for each in pairs)
        return Iterate(torch.cat([self.x, other.x], dim=1), images, moves)


def advance(now: Iterate, image: Stream, m: int, near: Bool[Tensor, "batch seq"]) -> Iterate:
    """The next iterate, given image = Phi(now.x): mixed at the positions that are `near` rest, the image itself elsewhere."""
    images = (*now.images, image)[-m - 1 :] if m else ()
    moves = (*now.moves, image - now.x)[-m - 1 :] if m else ()
    if len(moves) < 2:
        return Iterate(image, images, moves)
    # In differences the constraint is gone: x = Phi(x_k) - sum_i gamma_i (Phi(x_{i+1}) - Phi(x_i)), gamma by least squares
    d_image, d_move = (torch.stack(x).diff(dim=0).movedim(0, -1) for x in (images, moves))  # [batch, seq, d_model, m]
    normal = (d_move.mT @ d_move).double()
    ridge = _RIDGE * normal.diagonal(dim1=-2, dim2=-1).sum(-1) + torch.finfo(torch.float64).tiny
    normal = normal + ridge[..., None, None] * torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    gamma = torch.linalg.solve(normal, (d_move.mT @ moves[-1][..., None]).double()).to(image.dtype)
    mixed = image - (d_image @ gamma).squeeze(-1)
    return Iterate(torch.where(near[..., None], mixed, image), images, moves)

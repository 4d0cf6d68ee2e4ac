"""Trajectories h_0, h_1, ..., h_T of a looped model, and their principal components.

Uses embed and step only, so it works on every looped model of the project.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.decomposition import PCA
from torch import Tensor, nn


@dataclass(frozen=True)
class Projection:
    """States in the coordinates of their first principal components."""

    coordinates: Float[np.ndarray, "loop batch component"]
    """Position of each sequence after each loop, in units of the state."""
    explained: Float[np.ndarray, "component"]
    """Share of the variance along each component, 0 to 1."""


def trajectory(model: nn.Module, ids: Int[Tensor, "batch seq"], n_loops: int) -> Float[Tensor, "loop batch seq d_model"]:
    """States after 0, 1, ..., n_loops loops, without gradient or dropout.

    Memory: (n_loops + 1) * batch * seq * d_model elements. ValueError if n_loops is below 1.
    """
    if n_loops < 1:
        raise ValueError(f"a trajectory needs at least 1 loop, got {n_loops}")
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            h = model.embed(ids)
            states = h.new_empty(n_loops + 1, *h.shape)
            states[0] = h
            for t in range(1, n_loops + 1):
                states[t] = h = model.step(h)
    finally:
        model.train(was_training)
    return states


def project(states: Float[Tensor, "loop batch seq d_model"], components: int = 2, token: int | None = None) -> Projection:
    """PCA over all loops and sequences together, so that they share axes.

    A point is the whole state (all positions flattened), or the state of one `token` position.
    """
    loops, batch = states.shape[:2]
    points = states.flatten(2) if token is None else states[:, :, token]
    points = points.double().cpu().numpy().reshape(loops * batch, -1)
    pca = PCA(components, svd_solver="full").fit(points)
    return Projection(pca.transform(points).reshape(loops, batch, components), pca.explained_variance_ratio_)

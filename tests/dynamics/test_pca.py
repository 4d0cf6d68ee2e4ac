"""Projections are PCA, checked against a plain singular value decomposition; several runs can share axes."""

import numpy as np
import pytest
import torch

from looped_lib.config import ModelConfig
from looped_lib.dynamics.pca import project, project_jointly
from looped_lib.dynamics.trajectory import trajectory
from looped_lib.models.looped import LoopedTransformer

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def path(seed: int = 0, loops=5, d_model: int = 16):
    torch.manual_seed(seed)
    config = ModelConfig(d_model=d_model, n_heads=2, d_ff=32, max_len=8, init_std=0.3)
    return trajectory(LoopedTransformer(config).double(), IDS, loops)


@pytest.mark.parametrize("token", [None, 1])
@pytest.mark.parametrize("components", [2, 3])
def test_projection_is_pca(token, components):
    states = path().states
    projection = project(path(), components, token)
    points = (states.flatten(2) if token is None else states[:, :, token]).reshape(12, -1).numpy()
    centred = points - points.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    assert projection.coordinates.shape == (6, 2, components) and projection.loops.tolist() == list(range(6))
    found = np.abs(projection.coordinates.reshape(12, components))
    np.testing.assert_allclose(found, np.abs(u * s)[:, :components], atol=1e-9)
    np.testing.assert_allclose(projection.explained, (s**2 / (s**2).sum())[:components], atol=1e-12)


def test_joint_axes_keep_distances_between_runs():
    """With as many components as the states span, PCA is a rigid motion: all distances stay, those between runs included."""
    a, b = path(0), path(1, loops=[0, 3, 7])
    joint = project_jointly({"a": a, "b": b}, components=16, token=2)
    states = np.concatenate([a.states[:, :, 2].reshape(-1, 16), b.states[:, :, 2].reshape(-1, 16)])
    points = np.concatenate([joint["a"].coordinates.reshape(-1, 16), joint["b"].coordinates.reshape(-1, 16)])

    def distances(x):
        return np.linalg.norm(x[:, None] - x[None], axis=-1)

    np.testing.assert_allclose(distances(points), distances(states), atol=1e-9)
    assert joint["b"].coordinates.shape == (3, 2, 16) and joint["b"].loops.tolist() == [0, 3, 7]
    assert joint["a"].explained is joint["b"].explained


def test_per_problem_axes_are_those_of_the_problem_alone():
    whole = path()
    alone = project(whole.problem(1))
    first = alone.coordinates[:, 0]
    distances = np.linalg.norm(np.diff(whole.states[:, 1].flatten(1).numpy(), axis=0), axis=1)
    assert alone.coordinates.shape == (6, 1, 2) and (np.linalg.norm(np.diff(first, axis=0), axis=1) <= distances + 1e-9).all()
    assert alone.explained.sum() >= project(whole).explained.sum() - 1e-12


def test_it_repeats_itself():
    assert np.array_equal(project(path()).coordinates, project(path()).coordinates)


def test_states_that_never_move_are_one_point():
    still = path()
    still.states[:] = still.states[0, 0]
    projection = project(still)
    assert not projection.coordinates.any() and not projection.explained.any()


def test_what_cannot_be_projected_is_refused():
    with pytest.raises(ValueError, match="different sizes cannot share axes"):
        project_jointly({"a": path(), "b": path(d_model=8)})
    with pytest.raises(ValueError, match="3 components need more than 3 states"):
        project(path(loops=[2]), components=3)
    broken = path()
    broken.states[4:] = torch.inf
    with pytest.raises(ValueError, match="run is not finite from loop 4 on"):
        project_jointly({"run": broken})

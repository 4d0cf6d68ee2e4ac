"""Trajectories are the states of forward; projections are PCA, checked against a plain singular value decomposition."""

import numpy as np
import pytest
import torch

from looped_lib.config import ModelConfig
from looped_lib.model import LoopedTransformer
from looped_lib.trajectory import project, trajectory


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LoopedTransformer(ModelConfig(d_model=16, n_heads=2, d_ff=32, max_len=8, dropout=0.5, init_std=0.3)).double()


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_states_read_out_to_forward_at_every_depth(model):
    model.train()
    states = trajectory(model, IDS, 5)
    assert model.training and states.shape == (6, 2, 3, 16)
    model.eval()
    for t, h in enumerate(states):
        torch.testing.assert_close(model.readout(h), model(IDS, t))


def test_a_trajectory_needs_a_loop(model):
    with pytest.raises(ValueError, match="at least 1 loop"):
        trajectory(model, IDS, 0)


@pytest.mark.parametrize("token", [None, 1])
def test_projection_is_pca(model, token):
    states = trajectory(model, IDS, 5)
    projection = project(states, 3, token)
    points = (states.flatten(2) if token is None else states[:, :, token]).reshape(12, -1).numpy()
    centred = points - points.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    assert projection.coordinates.shape == (6, 2, 3)
    np.testing.assert_allclose(np.abs(projection.coordinates.reshape(12, 3)), np.abs(u * s)[:, :3], atol=1e-9)
    np.testing.assert_allclose(projection.explained, (s**2 / (s**2).sum())[:3], atol=1e-12)

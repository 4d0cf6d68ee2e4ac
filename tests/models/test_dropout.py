"""Masks have the right rate in every lane, keep the mean, and are what the gradient sees."""

import math

import pytest
import torch

from looped_lib.models.dropout import Dropout, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_entries_are_dropped_with_probability_p_each_on_its_own(p):
    n = 200_000
    mask = keep_mask(torch.empty(n, 4), p)
    kept = mask > 0
    assert mask[kept].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-4)
    spread = 5 * math.sqrt(p * (1 - p) / n)
    assert (kept.double().mean(0) - (1 - p)).abs().max() < spread + 2**-17  # the four lanes of a random word
    both = (kept[:, :, None] & kept[:, None]).double().mean(0)[~torch.eye(4, dtype=torch.bool)]
    assert (both - (1 - p) ** 2).abs().max() < 3 * spread
    assert ((kept[1:] & kept[:-1]).double().mean(0) - (1 - p) ** 2).abs().max() < 3 * spread


def test_the_mean_is_kept_exactly_in_expectation():
    """round(0.1 * 2^16) entries of 2^16 are dropped, and the rest scaled by what that leaves."""
    dropped = round(0.1 * 2**16)
    assert keep_mask(torch.empty(1000), 0.1).max().item() == pytest.approx(2**16 / (2**16 - dropped), rel=1e-6)


def test_the_gradient_is_the_mask():
    x = torch.randn(3, 5, 7, requires_grad=True)
    y = Dropout(0.3)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x * gradient)
    assert 0 < (gradient == 0).float().mean() < 1


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (0, 4)])
def test_any_number_of_entries(shape):
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_it_follows_the_seed_and_rests_in_evaluation():
    layer, x = Dropout(0.5), torch.ones(100)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(layer(x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert layer.eval()(x) is x and Dropout(0.0)(x) is x

"""The convolution is the product: values and derivatives against F.linear, in float64 and as the model calls it."""

import pytest
import torch
import torch.nn.functional as F

from looped_lib.models import linear
from looped_lib.models.linear import FEW_ROWS, Linear, pointwise_convolution

X, W, B = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 5, 4), (6, 4), (6,)))


@pytest.mark.parametrize("shape", [(4,), (7, 4), (3, 5, 4), (2, 8, 4), (2, 3, 16, 4)])
@pytest.mark.parametrize("bias", [B, None])
def test_equals_linear_for_any_leading_axes(shape, bias):
    x = torch.randn(*shape, dtype=torch.float64)
    torch.testing.assert_close(pointwise_convolution(x, W, bias), F.linear(x, W, bias), rtol=1e-13, atol=1e-13)


def test_derivatives_of_first_and_second_order():
    inputs = tuple(t.clone().requires_grad_() for t in (X[:2, :2], W, B))
    assert torch.autograd.gradcheck(pointwise_convolution, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x, w, b: pointwise_convolution(x, w, b).tanh(), inputs)


def test_the_dense_jacobian_by_vmap():
    ours, theirs = (torch.func.jacrev(f)(X, W, B) for f in (pointwise_convolution, F.linear))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [1, FEW_ROWS - 1, FEW_ROWS, 5 * FEW_ROWS])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("avx512", [True, False])
def test_the_layer_on_either_side_of_the_threshold(monkeypatch, rows, contiguous, avx512):
    monkeypatch.setattr(linear, "AVX512", avx512)
    layer = Linear(24, 40)
    x = torch.randn(rows, 1, 24) if contiguous else torch.randn(24, rows, 1).permute(1, 2, 0)
    y = layer(x)
    torch.testing.assert_close(y.double(), F.linear(x.double(), layer.weight.double(), layer.bias.double()), rtol=1e-5, atol=1e-5)
    assert y.is_contiguous()


def test_no_rows():
    assert Linear(24, 40)(torch.randn(0, 24)).shape == (0, 40)

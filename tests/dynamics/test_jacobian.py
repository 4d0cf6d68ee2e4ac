"""Products and estimators against the dense Jacobian, its singular values and its eigenvalues, in float64."""

import math

import pytest
import torch
from styles import STYLES
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from looped_lib.config import ModelConfig
from looped_lib.dynamics.jacobian import (
    dense_jacobian,
    finite_difference,
    jvp,
    random_normal,
    random_signs,
    spectral_norm,
    spectral_radius,
    squared_fro,
    vjp,
)
from looped_lib.models.looped import LoopedTransformer

PRODUCTS = [vjp, jvp, finite_difference]
SEQ, D = 2, 3
N = SEQ * D


def linear(matrices: torch.Tensor):
    """The map whose row b has the Jacobian matrices[b]."""

    def step(h):
        return (matrices @ h.flatten(1)[..., None]).view(h.shape)

    return step


def rotation(angle: float) -> torch.Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)


def matrices() -> torch.Tensor:
    """A batch of different problems: diagonal; non-normal; leading complex pair; one that is both; negative leading."""
    diagonal = torch.diag(torch.tensor([0.9, 0.3, -0.2, 0.1, 0.05, 0.0], dtype=torch.float64))
    shear = torch.diag(torch.tensor([0.5, 0.2, 0.1, -0.1, 0.05, 0.0], dtype=torch.float64))
    shear[0, 1] = 30.0
    pair = torch.block_diag(1.1 * rotation(0.7), 0.3 * torch.eye(4, dtype=torch.float64))
    change = torch.eye(N, dtype=torch.float64) + 0.5 * torch.randn(N, N, dtype=torch.float64).triu(1)
    skewed = change @ torch.block_diag(0.8 * rotation(2.0), 0.2 * torch.eye(4, dtype=torch.float64)) @ change.inverse()
    negative = torch.diag(torch.tensor([-0.9, 0.5, 0.2, 0.1, 0.05, 0.0], dtype=torch.float64))
    return torch.stack([diagonal, shear, pair, skewed, negative])


def rho(jacobians: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigvals(jacobians).abs().amax(-1)


def sigma(jacobians: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(jacobians, 2)


def transformer(placement: str = "sandwich_dual", norm: str = "LayerNorm", **changes) -> LoopedTransformer:
    config = {"d_model": 4, "n_heads": 2, "d_ff": 8, "k_layers": 2, "dropout": 0.0, "max_len": 4, "init_std": 0.5}
    config = ModelConfig(norm_placement=placement, norm_type=norm, deepnorm_alpha=2.0, **(config | changes))
    return LoopedTransformer(config).double()


def states(rows: int = 2, seq: int = 3, d: int = 4) -> torch.Tensor:
    return torch.randn(rows, seq, d, dtype=torch.float64)


def dense(step, h: torch.Tensor) -> torch.Tensor:
    return torch.stack([dense_jacobian(step, row) for row in h]).detach()


@pytest.mark.parametrize("placement, norm", STYLES)
def test_products_equal_the_dense_jacobian(placement, norm):
    model, h = transformer(placement, norm), states()
    v, jacobians = torch.randn_like(h), dense(model.step, h)
    left = (v.flatten(1)[:, None] @ jacobians).view_as(h)
    right = (jacobians @ v.flatten(1)[..., None]).view_as(h)
    torch.testing.assert_close(vjp(model.step, h, v), left, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(jvp(model.step, h, v), right, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(finite_difference(model.step, h, v), right, rtol=1e-6, atol=1e-8)


def test_dense_jacobian_of_a_linear_map_is_its_matrix():
    a = torch.randn(N, N, dtype=torch.float64)
    torch.testing.assert_close(dense_jacobian(linear(a[None]), states(1, SEQ, D)[0]), a)


def test_rows_do_not_interact_and_later_positions_do_not_reach_back():
    model, h = transformer(), states()
    jacobian = dense_jacobian(model.step, h[0]).view(3, 4, 3, 4)
    assert all(jacobian[i, :, j].abs().max() == 0 for i in range(3) for j in range(i + 1, 3))
    alone = vjp(model.step, h[:1], torch.ones_like(h[:1]))
    torch.testing.assert_close(vjp(model.step, h, torch.ones_like(h))[:1], alone)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_finite_difference_is_accurate_in_float32_whatever_the_size_of_h_and_v(scale):
    model = transformer("post_norm", "RMSNorm")
    h = scale * states()
    exact = jvp(model.step, h, torch.ones_like(h)).float()
    model.float()
    for size in (1e-6, 1.0, 1e6):
        approximate = finite_difference(model.step, h.float(), torch.full_like(h, size).float()) / size
        assert (approximate - exact).norm() < 2e-3 * exact.norm()


def test_finite_difference_at_zero_state_or_zero_vector():
    step = linear(matrices())
    h = torch.zeros(5, SEQ, D, dtype=torch.float64)
    v = torch.randn_like(h)
    torch.testing.assert_close(finite_difference(step, h, v), step(v))
    assert torch.equal(finite_difference(step, v, h), h)


def test_finite_difference_and_detached_vjp_run_on_fused_attention():
    """The memory-saving kernel has no second derivative; neither product may need one."""
    model, h = transformer().float(), states().float()
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def recorded(*args, **kwargs):
        seen.append((torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()))
        return attention(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
        finite_difference(model.step, h, torch.ones_like(h)).sum().backward()
        with torch.no_grad():
            vjp(model.step, h, torch.ones_like(h))
        assert set(seen) == {(True, False)}
        vjp(model.step, h, torch.ones_like(h))
        assert seen[-1] == (False, True)


@pytest.mark.parametrize("product", PRODUCTS)
def test_squared_fro_is_exact_over_the_basis_vectors(product):
    """Hutchinson's expectation, computed: sum over the basis e_i of ||J e_i||^2 = ||J||_F^2."""
    a = matrices()
    h, basis = states(len(a), SEQ, D), torch.eye(N, dtype=torch.float64)
    total = sum(squared_fro(linear(a), h, product, e.view(1, SEQ, D).expand_as(h)) for e in basis)
    torch.testing.assert_close(total, a.square().sum((1, 2)), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("product", [vjp, jvp])
def test_squared_fro_is_unbiased(product):
    """The mean of 20,000 probes lies within 4 standard errors, and the spread is the one the docstring states."""
    a, n = matrices()[3], 20_000
    h = states(1, SEQ, D).repeat(n, 1, 1)
    values = squared_fro(linear(a[None]), h, product, random_signs(h, torch.Generator().manual_seed(1)))
    exact = a.square().sum()
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(n)
    gram = a @ a.T if product is vjp else a.T @ a
    variance = 2 * (gram.square().sum() - gram.diagonal().square().sum())
    assert values.var().item() == pytest.approx(variance.item(), rel=0.1)


@pytest.mark.parametrize("product", PRODUCTS)
def test_spectral_norm_of_linear_maps(product):
    a = matrices()[[0, 1, 4]]  # separated singular values: (sigma_2 / sigma_1)^(4 * 20) < 1e-20
    h = states(len(a), SEQ, D)
    value, vector = spectral_norm(linear(a), h, product, random_normal(h), iterations=20)
    torch.testing.assert_close(value, sigma(a), rtol=1e-7, atol=0)
    torch.testing.assert_close(vector.flatten(1).norm(dim=1), torch.ones(len(a), dtype=torch.float64))


@pytest.mark.parametrize("product", PRODUCTS)
def test_spectral_norm_bounds_from_below_and_grows(product):
    a = matrices()
    h = states(len(a), SEQ, D)
    start = random_normal(h)
    values = torch.stack([spectral_norm(linear(a), h, product, start, k)[0] for k in (1, 2, 4, 8)])
    assert (values <= sigma(a) * (1 + 1e-7)).all()
    assert (values.diff(dim=0) >= -1e-7 * sigma(a)).all()


@pytest.mark.parametrize("product", PRODUCTS)
def test_spectral_radius_of_linear_maps(product):
    """200 products: real leading eigenvalues to 1e-6; the skewed complex pair averages out to O(1 / 100)."""
    a = matrices()
    h = states(len(a), SEQ, D)
    value, _ = spectral_radius(linear(a), h, product, random_normal(h), iterations=200)
    error = (value / rho(a) - 1).abs()
    assert (error[[0, 1, 4]] < 1e-6).all()
    assert error[2] < 1e-6  # a scaled rotation stretches every vector of the plane alike
    assert error[3] < 0.02


def test_the_three_quantities_differ_widely_on_a_non_normal_map():
    """rho < 1: stable; yet one step stretches thirtyfold; and the mean squared singular value is a third thing."""
    a = matrices()[1:2]
    h = states(1, SEQ, D)
    radius = spectral_radius(linear(a), h, jvp, random_normal(h), 200)[0].item()
    norm = spectral_norm(linear(a), h, jvp, random_normal(h), 20)[0].item()
    per_entry = sum(squared_fro(linear(a), h, jvp, e.view(1, SEQ, D)) for e in torch.eye(N).double()).item() / N
    assert (
        radius == pytest.approx(0.5, rel=1e-6)
        and norm > 30
        and per_entry == pytest.approx(matrices()[1].square().sum().item() / N, rel=1e-6)
    )


@pytest.mark.parametrize("placement, norm", STYLES)
def test_spectrum_of_a_transformer(placement, norm):
    model, h = transformer(placement, norm, k_layers=1), states(rows=8)
    jacobians = dense(model.step, h)
    for product in (vjp, jvp):
        value, _ = spectral_norm(model.step, h, product, random_normal(h), iterations=30)
        torch.testing.assert_close(value.detach(), sigma(jacobians), rtol=0.02, atol=0)
        value, _ = spectral_radius(model.step, h, product, random_normal(h), iterations=150)
        torch.testing.assert_close(value.detach(), rho(jacobians), rtol=0.06, atol=0)


@pytest.mark.parametrize("estimator", [spectral_norm, spectral_radius])
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_dead_map_has_norm_zero_and_finite_gradients(estimator, product):
    weight = nn.Parameter(torch.zeros(N, N, dtype=torch.float64))
    h = states(2, SEQ, D)
    value, vector = estimator(linear(weight[None]), h, product, random_normal(h), iterations=3)
    value.sum().backward()
    assert (value == 0).all() and torch.isfinite(vector).all() and torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("product", PRODUCTS)
def test_spectral_norm_gradient_is_u_v_transposed(product):
    weight = nn.Parameter(torch.randn(N, N, dtype=torch.float64))
    h = states(1, SEQ, D)
    spectral_norm(linear(weight[None]), h, product, random_normal(h), iterations=400)[0].sum().backward()
    expected = torch.autograd.grad(torch.linalg.matrix_norm(weight, 2), weight)[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("product", PRODUCTS)
def test_spectral_radius_gradient_is_exact_for_normal_maps(product):
    basis = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64))[0]
    eigenvalues = torch.tensor([-0.9, 0.6, 0.4, 0.2, 0.1, 0.0], dtype=torch.float64)
    weight = nn.Parameter(basis @ torch.diag(eigenvalues) @ basis.T)
    h = states(1, SEQ, D)
    spectral_radius(linear(weight[None]), h, product, random_normal(h), iterations=100)[0].sum().backward()
    torch.testing.assert_close(weight.grad, -torch.outer(basis[:, 0], basis[:, 0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("estimator", [spectral_norm, spectral_radius])
@pytest.mark.parametrize("product", PRODUCTS)
def test_only_the_last_product_keeps_a_graph(estimator, product):
    enabled = []

    def watched(step, h, v):
        enabled.append(torch.is_grad_enabled())
        return product(step, h, v)

    h = states()
    estimator(transformer().step, h, watched, random_normal(h), iterations=4)
    assert enabled == [False, False, False, True]


@pytest.mark.parametrize("placement, norm", STYLES)
def test_gradients_of_both_exact_products_agree_with_finite_differences(placement, norm):
    """torch's own forward-mode layer_norm would fail here: right products, wrong gradients."""
    model, h = transformer(placement, norm), states()
    v, w, parameters = torch.randn_like(h), torch.randn_like(h), list(model.layers.parameters())

    def gradient(scalar):
        return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, parameters, materialize_grads=True)])

    reference = gradient((w * finite_difference(model.step, h, v)).sum())
    for exact in ((w * jvp(model.step, h, v)).sum(), (vjp(model.step, h, w) * v).sum()):
        torch.testing.assert_close(gradient(exact), reference, rtol=1e-5, atol=1e-7)


def test_probes_have_identity_covariance():
    like = torch.zeros(20_000, 1, 3)
    for draw in (random_signs, random_normal):
        probes = draw(like, torch.Generator().manual_seed(0)).squeeze(1)
        assert (probes.T @ probes / len(probes) - torch.eye(3)).abs().max() < 5 * math.sqrt(2 / len(probes))
    assert set(random_signs(like).unique().tolist()) == {-1.0, 1.0}

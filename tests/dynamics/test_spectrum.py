"""The block spectrum and the iterative methods against the dense Jacobian and its eigenvalues, in float64."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from other_model import OtherModel
from scipy.optimize import linear_sum_assignment
from scipy.sparse.linalg import ArpackNoConvergence
from styles import STYLES

from looped_lib.config import ModelConfig
from looped_lib.dynamics import spectrum
from looped_lib.dynamics.jacobian import dense_jacobian
from looped_lib.dynamics.spectrum import (
    arnoldi_radius,
    eigenvalues,
    exact_radius,
    exact_squared_fro,
    lanczos_norm,
    same_position_blocks,
)
from looped_lib.models.looped import LoopedTransformer

IDS = torch.tensor([[1, 2, 10, 3, 4, 11], [5, 6, 10, 7, 8, 11]])


def transformer(placement="sandwich_dual", norm="LayerNorm", d_model=16, **changes) -> LoopedTransformer:
    torch.manual_seed(0)
    config = {"n_heads": 2, "d_ff": 32, "max_len": 16, "init_std": 0.4, "deepnorm_alpha": 2.0, **changes}
    return LoopedTransformer(ModelConfig(norm_placement=placement, norm_type=norm, d_model=d_model, **config)).double().eval()


def after_loops(model, n=2) -> torch.Tensor:
    """A state on the trajectory, not a random one."""
    with torch.no_grad():
        h = model.embed(IDS)
        for _ in range(n):
            h = model.step(h)
    return h


def dense(model, h) -> torch.Tensor:
    return torch.stack([dense_jacobian(model.step, row) for row in h]).detach()


def model_of(style, k_layers):
    return OtherModel().double() if style == "other" else transformer(*style, k_layers=k_layers)


@pytest.mark.parametrize("k_layers", [1, 3])
@pytest.mark.parametrize("style", [*STYLES, "other"], ids=str)
def test_blocks_are_the_diagonal_blocks_of_the_dense_jacobian(style, k_layers):
    model = model_of(style, k_layers)
    h = after_loops(model)
    batch, seq, d = h.shape
    expected = dense(model, h).view(batch, seq, d, seq, d).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    torch.testing.assert_close(same_position_blocks(model.step, h), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("k_layers", [1, 3])
@pytest.mark.parametrize("style", [*STYLES, "other"], ids=str)
def test_radius_is_that_of_the_dense_jacobian(style, k_layers):
    """By all eigenvalues, by Arnoldi on the blocks, and by Arnoldi on products: the same, to 1e-8."""
    model = model_of(style, k_layers)
    h = after_loops(model)
    expected = torch.linalg.eigvals(dense(model, h)).abs().amax(-1)
    torch.testing.assert_close(exact_radius(model.step, h), expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(arnoldi_radius(model.step, h, tol=1e-10), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("k_layers", [1, 3])
@pytest.mark.parametrize("style", STYLES, ids=str)
def test_every_eigenvalue_within_its_conditioning(style, k_layers):
    """Each eigenvalue of a block has one of the dense Jacobian within what rounding may do to that one: a small multiple of
    eps ||J|| / |y^H x|, with its left and right eigenvectors (first order perturbation theory)."""
    model = model_of(style, k_layers)
    h = after_loops(model)[:1]
    jacobian = dense(model, h)[0].numpy()
    exact, left, right = scipy.linalg.eig(jacobian, left=True)
    condition = 1 / np.abs((left.conj() * right).sum(0)).clip(1e-300)
    mine = eigenvalues(model.step, h).flatten().numpy()
    rows, columns = linear_sum_assignment(np.abs(exact[:, None] - mine[None]))
    error = np.abs(exact[rows] - mine[columns])
    bound = 1000 * np.finfo(float).eps * np.linalg.norm(jacobian, 2) * condition[rows]
    worst = (error / bound).max()
    assert worst < 1, worst


def test_wide_blocks_go_through_arnoldi_to_the_same_radius(monkeypatch):
    model = transformer(d_model=96)
    h = after_loops(model)
    by_all = exact_radius(model.step, h)
    monkeypatch.setattr(spectrum, "DENSE", 32)
    monkeypatch.setattr(torch.linalg, "eigvals", lambda *args: pytest.fail("all eigenvalues"))
    torch.testing.assert_close(exact_radius(model.step, h), by_all, rtol=1e-8, atol=0)


def test_a_block_on_which_arnoldi_fails_is_solved_whole_but_no_jacobian_is_written_out(monkeypatch):
    model = transformer(d_model=96)
    h = after_loops(model)
    expected = exact_radius(model.step, h)

    def fails(*args, **kwargs):
        raise ArpackNoConvergence("stopped", [], [])

    monkeypatch.setattr(spectrum, "eigs", fails)
    monkeypatch.setattr(spectrum, "DENSE", 32)
    monkeypatch.setattr(spectrum, "dense_jacobian", lambda *args: pytest.fail("wrote J out"))
    torch.testing.assert_close(exact_radius(model.step, h), expected, rtol=1e-10, atol=0)
    with pytest.raises(ArpackNoConvergence):
        arnoldi_radius(model.step, h)


def rotation_step(scale: float, angle: float, d: int = 80):
    """A linear map of every position whose leading eigenvalues are a complex pair; far from normal."""
    generator = torch.Generator().manual_seed(0)
    core = torch.diag(torch.linspace(0.0, 0.5, d, dtype=torch.float64))
    c, s = math.cos(angle), math.sin(angle)
    core[:2, :2] = scale * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    shear = torch.eye(d, dtype=torch.float64) + 0.1 * torch.randn(d, d, generator=generator, dtype=torch.float64).triu(1)
    matrix = shear @ core @ torch.linalg.inv(shear)
    return lambda h: h @ matrix.T, matrix


def test_a_leading_complex_pair_of_a_non_normal_map():
    step, matrix = rotation_step(0.9, 1.3)
    h = torch.randn(1, 2, 80, dtype=torch.float64)
    assert torch.linalg.matrix_norm(matrix, 2) > 1.2
    assert exact_radius(step, h).item() == pytest.approx(0.9, rel=1e-8)
    assert arnoldi_radius(step, h, tol=1e-10).item() == pytest.approx(0.9, rel=1e-8)
    assert lanczos_norm(step, h).item() == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-7)


@pytest.mark.parametrize("style", [*STYLES, "other"], ids=str)
def test_norms_are_those_of_the_dense_jacobian(style):
    model = model_of(style, 2)
    h = after_loops(model)
    jacobian = dense(model, h)
    torch.testing.assert_close(lanczos_norm(model.step, h), torch.linalg.matrix_norm(jacobian, 2), rtol=1e-7, atol=0)
    torch.testing.assert_close(exact_squared_fro(model.step, h), jacobian.square().sum((1, 2)), rtol=1e-9, atol=0)


def test_rho_and_sigma_and_frobenius_are_in_order():
    model = transformer()
    h = after_loops(model)
    rho, sigma, fro = exact_radius(model.step, h), lanczos_norm(model.step, h), exact_squared_fro(model.step, h).sqrt()
    assert (rho < sigma).all() and (sigma < fro).all()


def test_states_of_a_single_small_position():
    """Fewer entries than the iterative methods can take."""
    model = transformer(d_model=4)
    h = after_loops(model)[:1, :1]
    jacobian = dense(model, h)[0]
    expected = torch.linalg.eigvals(jacobian).abs().max().item()
    assert arnoldi_radius(model.step, h).item() == pytest.approx(expected, rel=1e-10)
    assert lanczos_norm(model.step, h).item() == pytest.approx(torch.linalg.matrix_norm(jacobian, 2).item(), rel=1e-10)


def test_products_in_several_parts_give_the_same_blocks(monkeypatch):
    model = transformer()
    h = after_loops(model)
    whole = same_position_blocks(model.step, h), exact_squared_fro(model.step, h)
    monkeypatch.setattr(spectrum, "_BYTES_AT_ONCE", 1)
    parts = same_position_blocks(model.step, h), exact_squared_fro(model.step, h)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_model_that_mixes_positions_elsewhere_is_refused():
    def step(h):
        return h + 0.5 * h.cumsum(1)

    with pytest.raises(ValueError, match="mixes positions outside"):
        same_position_blocks(step, torch.randn(1, 3, 4, dtype=torch.float64))
    h = torch.randn(1, 3, 40, dtype=torch.float64)
    assert arnoldi_radius(step, h).item() == pytest.approx(1.5, rel=1e-4)  # a defective eigenvalue
    assert spectrum.radius(step, h).item() == pytest.approx(1.5, rel=1e-4)  # which does not ask how positions are mixed


def test_dropout_is_refused():
    model = transformer(dropout=0.5).train()
    with pytest.raises(ValueError, match="evaluation mode"):
        same_position_blocks(model.step, torch.randn(1, 3, 16, dtype=torch.float64))


def test_nothing_here_keeps_a_graph():
    model = transformer()
    h = after_loops(model).requires_grad_()
    for f in (same_position_blocks, eigenvalues, exact_radius, arnoldi_radius, lanczos_norm, exact_squared_fro):
        assert not f(model.step, h).requires_grad, f.__name__

"""The spectrum of J = dPhi/dh at a state, exactly, and its norms: for looking at a trained model, not for training it.

In a causal model the state of position p depends on positions up to p only, so J is block-triangular over positions and its
eigenvalues are those of the diagonal blocks J_pp [d_model x d_model]. Phi mixes positions in attention and nowhere else.
With the keys and values of *other* positions held constant, every position becomes a map of its own with Jacobian J_pp, for
any number of layers in Phi (the diagonal blocks of a product of block-triangular matrices are the products of the blocks).
So d_model forward-mode products, each on all positions of all rows together, give all blocks: seq times fewer than J has
columns, and the eigenvalues of a matrix of seq * d_model become those of seq matrices of d_model.

    eigenvalues         every eigenvalue of J, per position: exact
    exact_radius        rho = max |eigenvalue|: exact for blocks up to DENSE wide, by Arnoldi's method on each block beyond
    radius              exact_radius where its condition holds, else arnoldi_radius
    arnoldi_radius      rho without forming the blocks: Arnoldi's method on products alone, for wide models
    lanczos_norm        sigma_max, by Lanczos bidiagonalisation on products with J and J^T
    exact_squared_fro   ||J||_F^2 from all N columns of J

All are constants (no gradient), per row, in the precision of h; float64 states give float64 accuracy. `jacobian` holds the
cheap estimators of the same quantities that a penalty can differentiate.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs, svds
from torch import Tensor
from torch.overrides import TorchFunctionMode

from looped_lib.dynamics.jacobian import PerRow, Step, Stream, dense_jacobian, jvp, random_normal, vjp

DENSE = 256  # width up to which the radius comes from all eigenvalues of a block: faster there than Arnoldi's method
_FEW = 64  # entries of a state below which scipy's iterative methods are pointless
_BYTES_AT_ONCE = 2**28  # tangents in flight together


class MixesPositions(ValueError):
    """Phi mixes positions by other means than `scaled_dot_product_attention`, so that its blocks cannot be separated."""


def same_position_blocks(step: Step, h: Stream) -> Float[Tensor, "batch seq d_model d_model"]:
    """J_pp of every row and position: how position p of the next state moves with position p of this one.

    Memory: batch * seq * d_model^2 elements. MixesPositions if Phi mixes positions other than by `scaled_dot_product_attention`:
    the blocks are checked at the last position, which sees all others, against one ordinary product.
    """
    h = h.detach()

    def column(e: Float[Tensor, "d_model"]) -> Stream:
        with _OwnPositionOnly():
            return jvp(step, h, e.expand_as(h))

    blocks = _over_basis(column, h.shape[-1], h).permute(1, 2, 3, 0)
    _check_last_position(step, h, blocks)
    return blocks


def eigenvalues(step: Step, h: Stream) -> Complex[Tensor, "batch seq d_model"]:
    """Every eigenvalue of J, by the position whose block it belongs to, in no particular order."""
    return torch.linalg.eigvals(same_position_blocks(step, h))


def exact_radius(step: Step, h: Stream, tol: float = 1e-10) -> PerRow:
    """rho of each row, from the blocks: all eigenvalues up to width DENSE, Arnoldi's method to relative `tol` beyond.

    MixesPositions (a ValueError) as by `same_position_blocks`.
    """
    blocks = same_position_blocks(step, h)
    if h.shape[-1] <= DENSE:
        return torch.linalg.eigvals(blocks).abs().amax((1, 2))
    flat = blocks.flatten(0, 1).cpu().numpy()
    return h.new_tensor([_block_radius(block, tol) for block in flat]).view(h.shape[:2]).amax(1)


def radius(step: Step, h: Stream) -> PerRow:
    """rho of each row: exact where Phi mixes positions by `scaled_dot_product_attention` alone, else by Arnoldi's method."""
    try:
        return exact_radius(step, h)
    except MixesPositions:
        return arnoldi_radius(step, h)


def arnoldi_radius(step: Step, h: Stream, tol: float = 1e-8) -> PerRow:
    """rho of each row to relative `tol`, from products alone: memory of a few dozen states, whatever the width.

    Arnoldi's method (ARPACK) on the block-diagonal part of J, which has J's eigenvalues and is less far from normal.
    scipy's ArpackNoConvergence if 10 N restarts are not enough.
    """
    with torch.no_grad():
        return torch.stack([_arnoldi_row(step, row[None], tol) for row in h.detach()])


def lanczos_norm(step: Step, h: Stream, tol: float = 1e-8) -> PerRow:
    """sigma_max of each row to relative `tol`, by Lanczos' method (ARPACK) on J^T J: products with J and J^T alone."""
    with torch.no_grad():
        return torch.stack([_lanczos_row(step, row[None], tol) for row in h.detach()])


def exact_squared_fro(step: Step, h: Stream) -> PerRow:
    """||J||_F^2 of each row, from all N = seq * d_model columns of J."""
    h = h.detach()

    def column(e: Float[Tensor, "entry"]) -> PerRow:
        return jvp(step, h, e.view(1, *h.shape[1:]).expand_as(h)).square().sum((1, 2))

    return _over_basis(column, h[0].numel(), h).sum(0)


def _over_basis(f: Callable[[Tensor], Tensor], n: int, h: Stream) -> Tensor:
    """f of each of the n unit vectors, stacked: as many at once as memory allows."""
    at_once = max(1, _BYTES_AT_ONCE // (8 * h.numel() * h.element_size()))  # Phi keeps several tensors wider than h
    with torch.no_grad():
        return torch.func.vmap(f, chunk_size=at_once)(torch.eye(n, dtype=h.dtype, device=h.device))


def _arnoldi_row(step: Step, row: Stream, tol: float) -> Float[Tensor, ""]:
    n = row.numel()
    if n < _FEW:
        return torch.linalg.eigvals(dense_jacobian(step, row[0])).abs().max()

    def product(v: np.ndarray) -> np.ndarray:
        with _OwnPositionOnly():
            return _numpy(jvp(step, row, _like(v, row)))

    return row.new_tensor(_leading(LinearOperator((n, n), matvec=product, dtype=_numpy(row).dtype), tol))


def _lanczos_row(step: Step, row: Stream, tol: float) -> Float[Tensor, ""]:
    n = row.numel()
    if n < _FEW:
        return torch.linalg.matrix_norm(dense_jacobian(step, row[0]), 2)
    operator = LinearOperator(
        (n, n),
        matvec=lambda v: _numpy(jvp(step, row, _like(v, row))),
        rmatvec=lambda u: _numpy(vjp(step, row, _like(u, row))),
        dtype=_numpy(row).dtype,
    )
    # ARPACK works on J^T J, whose eigenvalue is sigma^2: half the relative error on sigma
    return row.new_tensor(svds(operator, k=1, tol=tol, v0=_start(n), return_singular_vectors=False)[0])


def _block_radius(block: Float[np.ndarray, "d_model d_model"], tol: float) -> float:
    """Largest |eigenvalue| of one block; where Arnoldi's method does not converge, from all of them."""
    try:
        return _leading(LinearOperator(block.shape, matvec=block.__matmul__, dtype=block.dtype), tol)
    except ArpackNoConvergence:
        return float(np.abs(np.linalg.eigvals(block)).max())


def _leading(operator: LinearOperator, tol: float) -> float:
    """Largest |eigenvalue|. Several are asked for: a complex pair, or two of nearly equal size, then cannot be missed."""
    n = operator.shape[0]
    return float(np.abs(eigs(operator, k=4, ncv=min(n, 48), tol=tol, v0=_start(n), return_eigenvectors=False)).max())


def _start(n: int) -> np.ndarray:
    """The same start every time, so that results repeat."""
    return np.random.default_rng(0).standard_normal(n)


def _check_last_position(step: Step, h: Stream, blocks: Tensor) -> None:
    v = torch.zeros_like(h)
    v[:, -1] = random_normal(h, torch.Generator(h.device).manual_seed(0))[:, -1]
    with torch.no_grad():
        there = jvp(step, h, v)[:, -1]
    mine = (blocks[:, -1] @ v[:, -1, :, None]).squeeze(-1)
    if not torch.allclose(mine, there, rtol=1e-3, atol=1e-3 * float(there.abs().max())):
        raise MixesPositions(
            "this model mixes positions outside torch.nn.functional.scaled_dot_product_attention, so its same-position blocks "
            "cannot be separated: use arnoldi_radius or jacobian.dense_jacobian"
        )


class _OwnPositionOnly(TorchFunctionMode):
    """Attention whose tangent flows from a position's own query, key and value only; its value is unchanged."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return _attention_own_position(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention_own_position(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q K^T) V with K and V constant off the diagonal. `detach` drops a forward-mode tangent, so k - detached k is
    zero and carries the tangent of k."""
    if dropout_p:
        raise ValueError("a Jacobian needs a deterministic step: put the model into evaluation mode")
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], dim=-3) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    constant_k, constant_v = k.detach(), v.detach()
    scores = scale * (q @ constant_k.transpose(-2, -1) + torch.diag_embed((q * (k - constant_k)).sum(-1)))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    return weights @ constant_v + weights.diagonal(dim1=-2, dim2=-1)[..., None] * (v - constant_v)


def _like(v: np.ndarray, row: Stream) -> Stream:
    return torch.from_numpy(np.ascontiguousarray(v)).to(row).view(row.shape)


def _numpy(h: Tensor) -> np.ndarray:
    return h.flatten().float().cpu().numpy() if h.dtype in (torch.float16, torch.bfloat16) else h.flatten().cpu().numpy()

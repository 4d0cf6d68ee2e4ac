"""The Jacobian J = dPhi/dh of one loop: products with it, and the numbers that say how stable a loop is.

h is a batch of states [batch seq d_model]. Rows do not interact, so J has one N x N block per row, N = seq * d_model,
and every estimator returns one number per row:

    squared_fro       ||J||_F^2 = sum of the squared singular values
    spectral_norm     sigma_max = largest singular value: how much one loop can stretch a difference
    spectral_radius   rho = largest |eigenvalue|: how fast differences grow, in the end, when Phi is looped

rho <= sigma_max <= ||J||_F, with equality on the left for normal J. A non-normal J can have rho < 1 (stable) and any
sigma_max.

Products (v has the shape of h; all treat h as a constant)

    vjp                 v^T J    reverse mode; its gradient is a double backward pass
    jvp                 J v      forward mode; its gradient is one backward pass through it
    finite_difference   J v      (Phi(h + eps v) - Phi(h - eps v)) / (2 eps): two plain forward passes

With gradients enabled a product can be differentiated with respect to the parameters of `step`; under `torch.no_grad()`
it is a constant and keeps no graph. The first two are exact. Fused attention kernels have neither a double backward nor
forward mode, so wherever one is needed attention runs on the MATH backend; finite differences take any kernel.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from looped_lib.models.lengths import row_norm

Stream = Float[Tensor, "batch seq d_model"]
PerRow = Float[Tensor, "batch"]
Step = Callable[[Stream], Stream]
Product = Callable[[Step, Stream, Stream], Stream]


def vjp(step: Step, h: Stream, v: Stream) -> Stream:
    """v^T J, exactly."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if differentiable else nullcontext():
        h = h.detach().requires_grad_()
        return torch.autograd.grad(step(h), h, v, create_graph=differentiable)[0]


def jvp(step: Step, h: Stream, v: Stream) -> Stream:
    """J v, exactly, by forward mode.

    Forward mode rather than two VJPs (d/dw of w^T J v), which would need a third derivative for the gradient of a
    penalty: the tangent travels with one forward pass, and the parameters keep their ordinary reverse-mode graph
    through both.
    """
    with sdpa_kernel(SDPBackend.MATH), _LayerNormByParts():
        return torch.func.jvp(step, (h.detach(),), (v,))[1]


def finite_difference(step: Step, h: Stream, v: Stream) -> Stream:
    """J v by central differences.

    eps = f ||h|| / ||v|| per row: the perturbation is a fixed fraction f of the state. f = u^(1/3), u the machine epsilon,
    makes truncation, O(eps^2), and rounding, O(u / eps), equal: 0.5 % in float32, with a relative error of about 1e-4, and 1e-10
    in float64. Under bfloat16 autocast the loop runs in bfloat16 and f is 10 %, where ||J v||^2 is right to about 1 % (half as
    much is lost in rounding, twice as much bends); the difference is taken in the precision of h. `step` must not be random
    (dropout).
    """
    h = h.detach()
    size_h, size_v = row_norm(h), row_norm(v.detach())
    size_h, size_v = (torch.where(s > 0, s, torch.ones_like(s)) for s in (size_h, size_v))
    eps = _column(_fraction(h) * size_h / size_v).to(h.dtype)
    return (step(h + eps * v).to(h.dtype) - step(h - eps * v).to(h.dtype)) / (2 * eps)


def _fraction(h: Stream) -> float:
    half = h.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled(h.device.type) and torch.get_autocast_dtype(h.device.type) == torch.bfloat16
    )
    return 0.1 if half else torch.finfo(h.dtype).eps ** (1 / 3)


def squared_fro(step: Step, h: Stream, product: Product, probe: Stream) -> PerRow:
    """||J||_F^2 per row from one random probe v (Hutchinson): ||v^T J||^2 or ||J v||^2, unbiased if E[v v^T] = I.

    Proof: E||J v||^2 = E tr(J v v^T J^T) = tr(J E[v v^T] J^T) = tr(J J^T) = ||J||_F^2, and likewise for J^T. Signs
    (`random_signs`) have the smallest variance among probes with independent entries: 2 * sum_{i != j} G_ij^2, with
    G = J^T J (Hutchinson 1990). Its gradient is therefore an unbiased estimate of the gradient of ||J||_F^2.
    """
    return row_norm(product(step, h, probe)) ** 2


def spectral_norm(step: Step, h: Stream, product: Product, start: Stream, iterations: int) -> tuple[PerRow, Stream]:
    """sigma_max per row by power iteration on J^T J (on J J^T for `vjp`), and the unit vector to go on from.

    One iteration applies the transposed product, normalises, then applies the product: u -> v = J^T u / ||.|| -> ||J
    v||. The value is a lower bound of sigma_max that grows to it, with relative error O((sigma_2 / sigma_1)^(4
    iterations)). The transpose of `vjp` is `jvp`; that of `jvp` and of `finite_difference` is `vjp`, which any kernel
    supports because it is never differentiated here.

    Gradient: only through the last product, with its vector held constant. At convergence that is exact, d sigma = u^T
    dJ v, because sigma is stationary in its singular vectors.
    """
    transpose = jvp if product is vjp else vjp
    u = _unit(start)
    for i in range(iterations):
        with torch.no_grad():
            v = _unit(transpose(step, h, u))
        with torch.set_grad_enabled(torch.is_grad_enabled() and i == iterations - 1):
            image = product(step, h, v)
        u = _unit(image.detach())
    return row_norm(image), u


def spectral_radius(step: Step, h: Stream, product: Product, start: Stream, iterations: int) -> tuple[PerRow, Stream]:
    """rho per row by power iteration on J (on J^T for `vjp`: the same eigenvalues), and the unit vector to go on from.

    The value is the geometric mean of the step norms r_k = ||J v_k||, v_{k+1} = J v_k / r_k, over the later half of the
    iterations. With a complex pair of leading eigenvalues v_k turns in their plane and r_k oscillates for ever, but
    prod r_k = ||J^m v|| ~ rho^m. Both that and the start of a non-normal J cost a relative error O(1 / iterations).

    Gradient: only through the last product, with its vector v held constant, as d log rho := d log r_last = u^T dJ v /
    r_last with u = J v / r_last. For normal J with a real leading eigenvalue that is exact at convergence; for a
    complex pair it is exact on average over the phase of v. For other J it is a surrogate: the exact derivative has the
    left eigenvector in the place of u.
    """
    v = _unit(start)
    tiny = torch.finfo(torch.float32).tiny
    logs = []
    for i in range(iterations):
        with torch.set_grad_enabled(torch.is_grad_enabled() and i == iterations - 1):
            image = product(step, h, v)
        r = row_norm(image)
        logs.append(r.detach().clamp_min(tiny).log())
        v = _unit(image.detach())
    rho = torch.stack(logs[iterations // 2 :]).mean(0).exp()
    return rho * r / r.detach().clamp_min(tiny), v  # value rho, gradient rho * d log r


def random_signs(like: Stream, generator: torch.Generator | None = None) -> Stream:
    """Independent entries +1 or -1, each with probability one half, of the shape, type and device of `like`."""
    return torch.randint(0, 2, like.shape, generator=generator, device=like.device).to(like.dtype) * 2 - 1


def random_normal(like: Stream, generator: torch.Generator | None = None) -> Stream:
    """Independent standard normal entries: as a start of a power iteration it has a share in every eigenvector."""
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def dense_jacobian(step: Step, h_row: Float[Tensor, "seq d_model"]) -> Float[Tensor, "entry_out entry_in"]:
    """J of one row, written out, N x N with entries in the order of `h_row.flatten()`. For tests and small sizes."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jacrev(lambda x: step(x[None])[0])(h_row.detach()).reshape(h_row.numel(), h_row.numel())


class _LayerNormByParts(TorchFunctionMode):
    """Writes layer_norm out in elementary operations.

    torch's forward-mode formula of layer_norm holds mean and variance constant when it is itself differentiated: J v is
    right, but its gradient with respect to whatever came before the norm is silently wrong (torch 2.13).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    x = x - x.mean(axes, keepdim=True)
    x = x * torch.rsqrt((x * x).mean(axes, keepdim=True) + eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _column(x: PerRow) -> Float[Tensor, "batch 1 1"]:
    return x[:, None, None]


def _unit(v: Stream) -> Stream:
    """v with each row scaled to norm 1; a zero row stays zero."""
    return v / _column(row_norm(v).clamp_min(torch.finfo(torch.float32).tiny)).to(v.dtype)

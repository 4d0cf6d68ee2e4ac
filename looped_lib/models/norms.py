"""Normalisation layers over the last axis (`d_model`).

Every layer normalises each token vector x in R^d on its own; they differ in what they subtract and in what they learn.

    LayerNorm    g * (x - mean x) / sqrt(var x + eps) + b
    RMSNorm      g * x / sqrt(mean x^2 + eps)
    SimpleNorm       (x - mean x) / sqrt(var x + eps)          no parameters

DeepNorm is not a fourth layer: it is LayerNorm applied to a scaled residual, N(alpha x + F x), and is therefore a norm
*placement* (see `blocks.DeepNormResidual`) with its own initialisation.
"""

from collections.abc import Callable

from torch import nn

EPS = 1e-5  # the one LayerNorm of torch uses; the same for all, so that only the formula differs between norm types

MakeNorm = Callable[[], nn.Module]


def make_norm(norm_type: str, d_model: int) -> nn.Module:
    """A fresh norm of `norm_type` ("LayerNorm", "RMSNorm", "SimpleNorm", or "DeepNorm", whose N is LayerNorm)."""
    return _NORMS[norm_type](d_model)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "LayerNorm": lambda d: nn.LayerNorm(d, eps=EPS),
    "RMSNorm": lambda d: nn.RMSNorm(d, eps=EPS),
    "SimpleNorm": lambda d: nn.LayerNorm(d, eps=EPS, elementwise_affine=False),
    "DeepNorm": lambda d: nn.LayerNorm(d, eps=EPS),
}

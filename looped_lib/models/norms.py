"""Normalisation layers over the last axis (`d_model`).

Every layer normalises each token vector x in R^d on its own; they differ in what they subtract and in what they learn.

    LayerNorm    g * (x - mean x) / sqrt(var x + eps) + b
    RMSNorm      g * x / sqrt(mean x^2 + eps)
    SimpleNorm       (x - mean x) / sqrt(var x + eps)          no parameters

DeepNorm is not a fourth layer: in post_norm it is LayerNorm applied to a scaled residual, N(alpha x + F x), and therefore a norm
*placement* (see `blocks.DeepNormResidual`); in all placements it is LayerNorm with DeepNorm's own initial weights.
"""

from collections.abc import Callable

from torch import nn

EPS = 1e-5  # of LayerNorm, as torch's

MakeNorm = Callable[[], nn.Module]


def make_norm(norm_type: str, d_model: int, rms_eps: float = EPS) -> nn.Module:
    """A fresh norm of `norm_type` ("LayerNorm", "RMSNorm", "SimpleNorm", or "DeepNorm", whose N is LayerNorm)."""
    if norm_type == "RMSNorm":
        return nn.RMSNorm(d_model, eps=rms_eps)
    return nn.LayerNorm(d_model, eps=EPS, elementwise_affine=norm_type != "SimpleNorm")

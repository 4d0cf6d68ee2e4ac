"""Normalisation layers over the last axis (`d_model`).

Every layer normalises each token vector x in R^d on its own; they differ in what they subtract and in what they learn.

    LayerNorm    g * (x - mean x) / sqrt(var x + eps) + b
    RMSNorm      g * x / sqrt(mean x^2 + eps)
    SimpleNorm       (x - mean x) / sqrt(var x + eps)          no parameters

DeepNorm is not a fourth layer: in post_norm it is LayerNorm applied to a scaled residual, N(alpha x + F x), and therefore a norm
*placement* (see `blocks.DeepNormResidual`); in all placements it is LayerNorm with DeepNorm's own initial weights.

A norm of one's own is a class under `Norm` and `nn.Module`; ModelConfig.norm_type is its name.
"""

from collections.abc import Callable

from torch import nn

from looped_lib.core.kinds import Kind

EPS = 1e-5  # of LayerNorm, as torch's

MakeNorm = Callable[[], nn.Module]


class Norm(Kind):
    """A norm, made as Class(d_model, eps) with ModelConfig.rms_eps as eps; a module from [..., d_model] to the same."""


class LayerNorm(Norm, nn.LayerNorm):
    """Mean and variance removed; gain and bias."""

    def __init__(self, d_model: int, eps: float = EPS, affine: bool = True):
        super().__init__(d_model, eps=EPS, elementwise_affine=affine)


class DeepNorm(LayerNorm):
    """LayerNorm, in the residuals and with the initial weights of DeepNorm."""


class SimpleNorm(LayerNorm):
    """LayerNorm without gain and bias."""

    def __init__(self, d_model: int, eps: float = EPS):
        super().__init__(d_model, eps, affine=False)


class RMSNorm(Norm, nn.RMSNorm):
    """Root mean square removed; gain."""

    def __init__(self, d_model: int, eps: float = EPS):
        super().__init__(d_model, eps=eps)


def make_norm(norm_type: str, d_model: int, rms_eps: float = EPS) -> nn.Module:
    """A fresh norm of `norm_type`, by the name of its class."""
    return Norm.kinds[norm_type](d_model, rms_eps)

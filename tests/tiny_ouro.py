"""A small Ouro with random weights: norms away from 1, a gate that exits at different loops, positions that matter."""

import torch
from other_ouro import Sizes
from torch import Tensor

from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM

SIZES = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 50.0}


def tiny(dtype: torch.dtype = torch.float32, **changes) -> OuroForCausalLM:
    torch.manual_seed(0)
    model = OuroForCausalLM(OuroConfig(**{**SIZES, **HEADS, "initializer_range": 0.1, **changes})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
            if name.endswith("norm_2.weight"):
                p.mul_(0.4)  # not chaotic: rounding should not grow from loop to loop
        model.model.early_exit_gate.weight.mul_(3)
        model.model.embed_tokens.weight.mul_(5)
    return model.to(dtype)


def sizes_of(model: OuroForCausalLM) -> Sizes:
    c, rope = model.config, model.config.rope_parameters
    factor = rope.get("factor", 1.0)
    return Sizes(c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, rope["rope_theta"], factor, c.rms_norm_eps)


def random_ids(*shape: int) -> Tensor:
    return torch.randint(3, 48, shape, generator=torch.Generator().manual_seed(1))


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of the parameters that the loss depends on."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}

"""Ouro's configuration: a Llama-shaped decoder, looped. Reads the config.json of the official checkpoints.

What it writes has the official fields (RoPE as `rope_theta` and `rope_scaling`) and those of transformers 5, with two
differences: the type of the weights is named `dtype`, which was `torch_dtype`, and there is no `auto_map`, which would point at
code that is not written along.
"""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlamaConfig

from looped_lib.core import checks

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "max_position_embeddings"),
)


@strict
class OuroConfig(LlamaConfig):
    """What LlamaConfig has, and how often the layers are looped. The defaults are Ouro-1.4B's.

    total_ut_steps         loops T of a call that does not say `n_loops`
    early_exit_threshold   of the cumulative exit probability; at 1 nothing exits early, which null in a file means too
    """

    model_type = "ouro"

    vocab_size: int = 49_152
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    max_position_embeddings: int = 65_536
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0
    pad_token_id: int | None = 0
    total_ut_steps: int = 4
    early_exit_threshold: Any = 1.0
    layer_types: list[str] | None = None

    def __post_init__(self, **kwargs: Any):
        # The official files state RoPE as rope_theta and rope_scaling; transformers 5 as one dictionary.
        kwargs.setdefault("rope_theta", 1e6)
        kwargs.pop("auto_map", None)  # points at remote code, which this class replaces
        super().__post_init__(**kwargs)
        if self.early_exit_threshold is None:
            self.early_exit_threshold = 1.0
        checks.number(self, 0, math.inf, "early_exit_threshold")

    def validate_architecture(self) -> None:
        """ValueError on sizes and layers that Ouro cannot have."""
        super().validate_architecture()
        if self.total_ut_steps < 1:
            raise ValueError(f"total_ut_steps must be at least 1 loop, got {self.total_ut_steps}")
        for name in _SIZES:
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads ({self.num_attention_heads}): {self.num_key_value_heads}"
            )
        if self.layer_types is not None and set(self.layer_types) != {"full_attention"}:
            raise ValueError(f"layer_types must be full_attention for every layer, got {sorted(set(self.layer_types))}")

    def to_dict(self) -> dict[str, Any]:
        """With the official names of what transformers 5 renamed."""
        out = super().to_dict()
        rope = out["rope_parameters"]
        scaling = None if rope["rope_type"] == "default" else rope
        return {**out, "rope_theta": rope["rope_theta"], "rope_scaling": scaling}


AutoConfig.register("ouro", OuroConfig, exist_ok=True)  # transformers may have an Ouro of its own one day

"""Ouro's looped stack: the layers, one loop of them, and the loops of a call. `modeling` adds the head.

Attention, MLP, RMSNorm and RoPE are transformers' own (Llama's).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from looped_lib.ouro.model.cache import LoopedCache
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.exits import Exits
from looped_lib.ouro.model.gate import PerToken, Stream


@dataclass(frozen=True)
class Loops:
    """What every loop of one call shares: rotary tables, mask, positions (flash attention knows packed texts by them), cache."""

    rotary: tuple[Float[Tensor, "rows seq d_head"], Float[Tensor, "rows seq d_head"]]
    mask: Tensor | None = None
    positions: Int[Tensor, "rows seq"] | None = None
    cache: LoopedCache | None = None

    def without_cache(self) -> "Loops":
        """The same, for recomputing a loop outside generation."""
        return Loops(self.rotary, self.mask, self.positions)


class OuroRMSNorm(LlamaRMSNorm):
    """Llama's, whose float32 it widens to float64 where the states are: else differences of loops and J are float32's."""

    def forward(self, x: Tensor) -> Tensor:
        """weight * x / rms(x)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)).to(x.dtype)


class OuroLayer(nn.Module):
    """h += N2(attention(N1 h)); h += N4(mlp(N3 h)): the residual stream itself is not normed."""

    def __init__(self, config: OuroConfig, index: int):
        super().__init__()
        self.self_attn = LlamaAttention(config, index)
        self.mlp = LlamaMLP(config)
        for name in ("input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2"):
            setattr(self, name, OuroRMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(self, h: Stream, loops: Loops) -> Stream:
        """One layer of one loop."""
        attended, _ = self.self_attn(self.input_layernorm(h), loops.rotary, loops.mask, loops.cache, position_ids=loops.positions)
        h = h + self.input_layernorm_2(attended)
        return h + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(h)))


class OuroPreTrainedModel(PreTrainedModel):
    """What transformers needs to know to load, save, shard and initialise."""

    config_class = OuroConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["OuroLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class OuroModel(OuroPreTrainedModel):
    """The looped stack without its head."""

    def __init__(self, config: OuroConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(OuroLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = OuroRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.early_exit_gate = nn.Linear(config.hidden_size, 1)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def embed(self, ids: Int[Tensor, "batch seq"]) -> Stream:
        """h_0."""
        return self.embed_tokens(ids)

    def step(self, h: Stream, loops: Loops | None = None) -> Stream:
        """Phi(h): exactly one loop, its norm included."""
        return self.loop_norm(self.before_norm(h, loops))

    def before_norm(self, h: Stream, loops: Loops | None = None) -> Stream:
        """The stream at the end of a loop, before the norm that hides its growth."""
        loops = self.plain(h) if loops is None else loops
        for layer in self.layers:
            h = layer(h, loops)
        return h

    def loop_norm(self, u: Stream) -> Stream:
        """The norm that closes a loop: step(h) = loop_norm(before_norm(h))."""
        return self.norm(u)

    def exit_gate(self, h: Stream) -> PerToken:
        """lambda of states at the end of a loop."""
        return torch.sigmoid(self.early_exit_gate(h).squeeze(-1).float())

    def plain(self, h: Stream) -> Loops:
        """The context of whole, unpadded sequences."""
        return self.context(h)

    def context(
        self,
        h: Stream,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "rows seq"] | None = None,
        cache: LoopedCache | None = None,
    ) -> Loops:
        """Rotary tables and mask of a call, made once for all loops.

        A row's first real token has position 0 wherever its padding is. Texts packed into one row, told by `position_ids` that
        restart, are blind to each other: as in all of transformers, only without a mask and without a cache.
        """
        before = 0 if cache is None else cache.get_seq_length()
        padded = attention_mask is not None and attention_mask.ndim == 2
        if position_ids is None and padded:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -h.shape[1] :]
        elif position_ids is None:
            positions = torch.arange(before, before + h.shape[1], device=h.device)[None]
        else:
            positions = position_ids
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=h,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=position_ids,
        )
        if padded and isinstance(mask, Tensor) and mask.ndim == 4 and mask.dtype == torch.bool:
            mask = _with_oneself(mask)
        return Loops(self.rotary_emb(h, positions), mask, positions, cache)

    def loop(self, h: Stream, t: int, loops: Loops, reading: Bool[Tensor, "batch seq"] | None = None) -> Stream:
        """Loop number t of a call: `step`, with its cache slots open, recomputed in the backward pass if so set."""
        if loops.cache is not None:
            loops.cache.open_loop(t, reading)
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(self.step, h, loops)
        return self.step(h, loops)

    def run(self, h: Stream, n_loops: int, loops: Loops, exits: Exits | None = None) -> Iterator[Stream]:
        """h_1 .. h_T of a call, to be taken to the end, where the cache is closed.

        Fewer than `n_loops` once every position has exited, without a cache or with one that may have gaps.
        """
        may_stop = exits is not None and (loops.cache is None or loops.cache.may_stop_early)
        for t in range(n_loops):
            before, h = h, self.loop(h, t, loops, None if exits is None else exits.reading)
            if exits is not None:
                exits.look(t, before, h)
            yield h
            if may_stop and exits.all_done:
                break
        if loops.cache is not None:
            loops.cache.close()

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "rows seq"] | None = None,
        inputs_embeds: Stream | None = None,
        n_loops: int | None = None,
        output_hidden_states: bool = False,
        **_: object,
    ) -> BaseModelOutputWithPast:
        """h_T, and with `output_hidden_states` h_0 .. h_T."""
        start = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        loops = self.context(start, attention_mask, position_ids)
        states = [start, *self.run(start, check_loops(n_loops, self.config), loops)]
        return BaseModelOutputWithPast(
            last_hidden_state=states[-1], hidden_states=tuple(states) if output_hidden_states else None
        )


def _with_oneself(mask: Bool[Tensor, "batch heads seq seen"]) -> Bool[Tensor, "batch heads seq seen"]:
    """Padding, too, sees itself: a softmax over nothing has no finite derivative in forward mode."""
    seq, seen = mask.shape[-2:]
    own = torch.ones(seq, seen, dtype=torch.bool, device=mask.device).tril(seen - seq).triu(seen - seq)
    return mask | own


def check_loops(n_loops: int | None, config: OuroConfig) -> int:
    """The loop count of a call; ValueError below 1."""
    n_loops = config.total_ut_steps if n_loops is None else n_loops
    if n_loops < 1:
        raise ValueError(f"n_loops must be at least 1, got {n_loops}")
    return n_loops


AutoModel.register(OuroConfig, OuroModel, exist_ok=True)  # transformers may have an Ouro of its own one day

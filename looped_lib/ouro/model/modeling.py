"""Ouro (arXiv 2510.25741) for transformers: N sandwich-normed layers, looped T times with one set of weights.

    h_0     = embed(ids)
    h_{t+1} = step(h_t) = norm(layers(h_t)),     each layer  h += N2(attention(N1 h));  h += N4(mlp(N3 h))
    logits  = readout(h_T) = lm_head(h_T)

The norm closes *every* loop: h_t is what the next loop, the exit gate and the head see, and J is the Jacobian of `step`.
Positions and mask enter attention only, so `step` takes them as a `Loops` context; without one it runs the plain causal case,
which is all that `looped_lib`'s samplers, penalties, trajectories and spectra ask of a model.

Attention, MLP, RMSNorm and RoPE are transformers' own (Llama's).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from looped_lib.ouro.model.cache import LoopCache, LoopedCache
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.gate import Exits, PerToken, Stream, exit_probabilities, mixture

OfPhi = Callable[[Callable[[Stream], Stream], Stream], Tensor]


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


@dataclass
class OuroOutput(CausalLMOutputWithPast):
    """transformers' output, and what looping adds to it."""

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "batch kept vocab"] | None = None
    past_key_values: LoopedCache | None = None
    hidden_states: tuple[Stream, ...] | None = None
    penalty: Float[Tensor, ""] | None = None
    """What `of_phi` returned."""
    exit_loops: Int[Tensor, "batch seq"] | None = None
    """tau, the loop each position was read out at, if the call had an exit."""


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
        h = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        loops, states = self.context(h, attention_mask, position_ids), [h]
        for t in range(check_loops(n_loops, self.config)):
            h = self.loop(h, t, loops)
            states.append(h)
        return BaseModelOutputWithPast(last_hidden_state=h, hidden_states=tuple(states) if output_hidden_states else None)


class OuroForCausalLM(OuroPreTrainedModel, GenerationMixin):
    """Ouro with its head: loss, exits, generation."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    accepts_loss_kwargs = True  # a Trainer passes num_items_in_batch

    def __init__(self, config: OuroConfig):
        super().__init__(config)
        self.model = OuroModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def embed(self, ids: Int[Tensor, "batch seq"]) -> Stream:
        """h_0."""
        return self.model.embed(ids)

    def step(self, h: Stream, loops: Loops | None = None) -> Stream:
        """Phi(h) (see `OuroModel.step`)."""
        return self.model.step(h, loops)

    def before_norm(self, h: Stream, loops: Loops | None = None) -> Stream:
        """The stream before the norm that closes the loop."""
        return self.model.before_norm(h, loops)

    def loop_norm(self, u: Stream) -> Stream:
        """step(h) = loop_norm(before_norm(h))."""
        return self.model.loop_norm(u)

    def readout(self, h: Stream) -> Float[Tensor, "batch seq vocab"]:
        """Next-token logits of states at the end of a loop."""
        return self.lm_head(h)

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "rows seq"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Stream | None = None,
        labels: Int[Tensor, "batch seq"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        n_loops: int | None = None,
        exit_threshold: float | None = None,
        exit_residual: float | None = None,
        entropy_weight: float | None = None,
        of_phi: OfPhi | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> OuroOutput:
        """Logits after `n_loops` loops (the config's total_ut_steps if not given), and with `labels` a loss.

        loss             cross-entropy of the last loop per label, or, with `entropy_weight` beta, Ouro's pre-training mixture
                         sum_t p_t L_t - beta H(p). Summed over labels and divided by `num_items_in_batch` if given, by their
                         number otherwise. Labels are shifted here; -100 has no loss.
        exit_threshold   read each position out at its first loop with p_1 + .. + p_t >= threshold (the config's
                         early_exit_threshold if not given; at 1 and above only a residual exits)
        exit_residual    ... with ||h_t - h_{t-1}|| / ||h_{t-1}|| <= residual; with a threshold too, whichever comes first
        of_phi           called with (Phi, h_T), Phi the map of one loop of this batch; its value is returned as `penalty`.
                         Inside the forward pass, so that DDP and FSDP see one graph.

        Without a cache, and with a `LastLoopCache`, loops end once every position has exited; a `LoopCache` needs them all.
        With labels all loops run, whatever the config's threshold. Attention weights are not kept, and the output is always an
        OuroOutput: `output_attentions` and `return_dict` are there because other libraries pass them. ValueError without a loop,
        with labels and an exit, or with a cache that recomputation in the backward pass would fill twice.
        """
        n_loops = check_loops(n_loops, self.config)
        threshold = self.config.early_exit_threshold if exit_threshold is None else exit_threshold
        if labels is not None and (exit_threshold is not None or exit_residual is not None):
            raise ValueError("a loss is that of all loops: give labels or an exit (exit_threshold, exit_residual), not both")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        h = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(past_key_values, use_cache)
        if cache is not None:
            if self.model.gradient_checkpointing and self.training:
                raise ValueError("use_cache must be off in training with gradient checkpointing, which computes every loop twice")
            cache.begin(n_loops)
        loops = self.model.context(h, attention_mask, position_ids, cache)
        mixing = labels is not None and entropy_weight is not None
        exits = Exits(threshold, exit_residual) if labels is None and (threshold < 1 or exit_residual is not None) else None
        states, lambdas, losses = [h], [], []
        for t in range(n_loops):
            before, h = h, self.model.loop(h, t, loops, None if exits is None else exits.reading)
            if output_hidden_states:
                states.append(h)
            if exits is not None:
                exits.look(t, before, h, self.model.exit_gate(h))
                if exits.all_done and (cache is None or cache.may_stop_early):
                    break
            if mixing:
                lambdas.append(self.model.exit_gate(h))
                losses.append(checkpoint(self._token_loss, h, labels, use_reentrant=False))
        if cache is not None:
            cache.close()
        read = h if exits is None else exits.chosen
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.readout(read[:, kept])
        loss = None
        if mixing:
            loss = mixture(torch.stack(losses), exit_probabilities(lambdas)[..., :-1], labels, entropy_weight, num_items_in_batch)
        elif labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        return OuroOutput(
            loss=loss,
            logits=logits,
            past_key_values=cache,
            hidden_states=tuple(states) if output_hidden_states else None,
            penalty=None if of_phi is None else of_phi(lambda x: self.step(x, loops.without_cache()), h),
            exit_loops=None if exits is None else exits.loops,
        )

    def _cache(self, given: Cache | None, use_cache: bool | None) -> LoopedCache | None:
        if given is not None and not isinstance(given, LoopedCache):
            raise ValueError(
                f"past_key_values must be a LoopCache or a LastLoopCache (looped_lib.ouro.model.cache), got "
                f"{type(given).__name__}: other caches have one slot per layer, not one per loop and layer"
            )
        return LoopCache(self.config.num_hidden_layers) if given is None and use_cache else given

    def _token_loss(self, h: Stream, labels: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch label"]:
        logits = self.readout(h[:, :-1]).float()
        return F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        """`generate` gets a cache with a slot per loop and layer, where transformers would give it one per layer."""
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            if generation_config.cache_implementation not in (None, "dynamic"):
                raise ValueError(
                    f"cache_implementation must be 'dynamic' for Ouro, got {generation_config.cache_implementation!r}; "
                    "pass past_key_values=LastLoopCache() to save memory"
                )
            model_kwargs["past_key_values"] = LoopCache(self.config.num_hidden_layers)


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


AutoModel.register(OuroConfig, OuroModel)
AutoModelForCausalLM.register(OuroConfig, OuroForCausalLM)

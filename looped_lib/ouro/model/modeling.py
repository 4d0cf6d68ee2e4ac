"""Ouro (arXiv 2510.25741) for transformers: N sandwich-normed layers, looped T times with one set of weights.

    h_0     = embed(ids)
    h_{t+1} = step(h_t) = norm(layers(h_t)),     each layer  h += N2(attention(N1 h));  h += N4(mlp(N3 h))
    logits  = readout(h_T) = lm_head(h_T)

The norm closes *every* loop: h_t is what the next loop, the exit gate and the head see, and J is the Jacobian of `step`.
Positions and mask enter attention only, so `step` takes them as a `Loops` context; without one it runs the plain causal case,
which is all that `looped_lib`'s samplers, penalties, trajectories and spectra ask of a model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from looped_lib.ouro.model.cache import LoopCache, LoopedCache
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.exits import Criteria, Exits
from looped_lib.ouro.model.gate import PerToken, Stream, exit_probabilities, mixture
from looped_lib.ouro.model.stack import Loops, OuroModel, OuroPreTrainedModel, check_loops

OfPhi = Callable[[Callable[[Stream], Stream], Stream], Tensor]
OFFICIAL = (
    "exit_at_step and use_weighted_exit are the official class's: here n_loops=t + 1 reads out what exit_at_step=t did, "
    "exit_threshold exits by the gate, and logits are always those of one loop"
)


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


class OuroForCausalLM(OuroPreTrainedModel, GenerationMixin):
    """Ouro with its head: loss, exits, generation. What a call may say, beside what any causal model of transformers takes:

    n_loops          T; the config's total_ut_steps if not given
    exit_threshold   read each position out at its first loop where the gate reaches this threshold (see `exits`; the config's
                     early_exit_threshold if not given; at 1 and above the gate exits nowhere)
    exit_residual, exit_kl, exit_entropy   ... where another criterion does; with several, whichever comes first
    entropy_weight   beta of Ouro's pre-training mixture, sum_t p_t L_t - beta H(p), as the loss instead of the cross-entropy of
                     the last loop
    of_phi           called with (Phi, h_T), Phi the map of one loop of this batch; its value is returned as `penalty`. Inside
                     the forward pass, so that DDP and FSDP see one graph.

    Without a cache, and with a `LastLoopCache`, loops end once every position has exited; a `LoopCache` needs them all. With
    labels all loops run, whatever the config's threshold. Attention weights are not kept, and the output is always an
    OuroOutput: `output_attentions` and `return_dict` are there because other libraries pass them, `exit_at_step` and
    `use_weighted_exit` because the official class has them: they are refused by name.
    """

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
        exit_kl: float | None = None,
        exit_entropy: float | None = None,
        entropy_weight: float | None = None,
        of_phi: OfPhi | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        exit_at_step: int | None = None,
        use_weighted_exit: bool | None = None,
    ) -> OuroOutput:
        """Logits after the last loop, and with `labels` (shifted here; -100 has none) a loss: summed over them and divided by
        `num_items_in_batch` if given, by their number otherwise. ValueError on what cannot go together (see the class)."""
        if exit_at_step is not None or use_weighted_exit:
            raise TypeError(OFFICIAL)
        n_loops = check_loops(n_loops, self.config)
        exits = self._exits(labels, exit_threshold, residual=exit_residual, kl=exit_kl, entropy=exit_entropy)
        start = self._first_state(input_ids, inputs_embeds)
        loops = self.model.context(start, attention_mask, position_ids, self._cache(past_key_values, use_cache, n_loops))
        states, mixed = [start], None if labels is None or entropy_weight is None else []
        for h in self.model.run(start, n_loops, loops, exits):
            if output_hidden_states:
                states.append(h)
            if mixed is not None:
                mixed.append((self.model.exit_gate(h), checkpoint(self._token_loss, h, labels, use_reentrant=False)))
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.readout((h if exits is None else exits.chosen)[:, kept])
        return OuroOutput(
            loss=self._loss(logits, labels, mixed, entropy_weight, num_items_in_batch),
            logits=logits,
            past_key_values=loops.cache,
            hidden_states=tuple(states) if output_hidden_states else None,
            penalty=None if of_phi is None else of_phi(lambda x: self.step(x, loops.without_cache()), h),
            exit_loops=None if exits is None else exits.loops,
        )

    def _exits(self, labels: Tensor | None, gate: float | None, **others: float | None) -> Exits | None:
        if labels is not None:
            if any(threshold is not None for threshold in (gate, *others.values())):
                raise ValueError("a loss is that of all loops: give labels or an exit (exit_threshold, exit_residual), not both")
            return None
        gate = self.config.early_exit_threshold if gate is None else gate
        thresholds = {by: x for by, x in others.items() if x is not None} | ({"gate": gate} if gate < 1 else {})
        return Exits(thresholds, Criteria(thresholds, self.model.exit_gate, self.lm_head)) if thresholds else None

    def _first_state(self, ids: Tensor | None, embeddings: Stream | None) -> Stream:
        if (ids is None) == (embeddings is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        return self.embed(ids) if embeddings is None else embeddings

    def _cache(self, given: Cache | None, use_cache: bool | None, n_loops: int) -> LoopedCache | None:
        """The cache of a call, ready for `n_loops` loops of new tokens."""
        if given is not None and not isinstance(given, LoopedCache):
            raise ValueError(
                f"past_key_values must be a LoopCache or a LastLoopCache (looped_lib.ouro.model.cache), got "
                f"{type(given).__name__}: other caches have one slot per layer, not one per loop and layer"
            )
        cache = LoopCache(self.config.num_hidden_layers) if given is None and use_cache else given
        if cache is not None:
            if self.model.gradient_checkpointing and self.training:
                raise ValueError("use_cache must be off in training with gradient checkpointing, which computes every loop twice")
            cache.begin(n_loops)
        return cache

    def _loss(
        self,
        logits: Float[Tensor, "batch kept vocab"],
        labels: Int[Tensor, "batch seq"] | None,
        mixed: list[tuple[PerToken, Tensor]] | None,
        entropy_weight: float | None,
        num_items: Tensor | int | None,
    ) -> Float[Tensor, ""] | None:
        """Of the last loop, or of `mixed`: the gate and the losses of each label after every loop."""
        if mixed is not None:
            lambdas, losses = zip(*mixed, strict=True)
            return mixture(torch.stack(losses), exit_probabilities(list(lambdas))[..., :-1], labels, entropy_weight, num_items)
        if labels is None:
            return None
        return self.loss_function(logits, labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items)

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


AutoModelForCausalLM.register(OuroConfig, OuroForCausalLM, exist_ok=True)

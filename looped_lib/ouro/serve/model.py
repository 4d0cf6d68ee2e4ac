"""Ouro for vLLM: the forward pass of `looped_lib.ouro.model.modeling`, from vLLM's own layers.

One set of weights, and in every layer one `Attention` per loop: an Attention is a slot of vLLM's paged cache, found by its name.
Loop t of layer i is named as layer t N + i, so the engine sees N T layers of cache behind N layers of weights.

    h = embed(ids);  T times:  for each layer  h += N2(attention(N1 h)), h += N4(mlp(N3 h));  then  h = norm(h)

T is read from the config when the engine is built. Checkpoints bring the exit gate's weights too, of no use at a fixed depth.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsLoRA
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.sequence import IntermediateTensors

GATE = "model.early_exit_gate."


class OuroAttention(nn.Module):
    """Causal attention with rotary positions, its projections shared by all loops and its cache not."""

    def __init__(self, vllm_config: VllmConfig, index: int, model_prefix: str):
        super().__init__()
        config, n_layers = vllm_config.model_config.hf_config, vllm_config.model_config.hf_config.num_hidden_layers
        prefix, n_heads, bias = f"{model_prefix}.layers.{index}.self_attn", config.num_attention_heads, config.attention_bias
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size, config.head_dim, n_heads, config.num_key_value_heads, bias, prefix=f"{prefix}.qkv_proj"
        )
        self.o_proj = RowParallelLinear(n_heads * config.head_dim, config.hidden_size, bias, prefix=f"{prefix}.o_proj")
        self.rotary_emb = get_rope(config.head_dim, config.max_position_embeddings, rope_parameters=config.rope_parameters)
        self.widths = [h * config.head_dim for h in (self.qkv_proj.num_heads, *[self.qkv_proj.num_kv_heads] * 2)]
        self.loops = nn.ModuleList(
            Attention(
                self.qkv_proj.num_heads,
                config.head_dim,
                config.head_dim**-0.5,
                num_kv_heads=self.qkv_proj.num_kv_heads,
                cache_config=vllm_config.cache_config,
                prefix=f"{model_prefix}.layers.{t * n_layers + index}.self_attn.attn",
            )
            for t in range(config.total_ut_steps)
        )

    def forward(self, positions: Tensor, h: Tensor, t: int) -> Tensor:
        """Attention of loop t, over what loop t put into its slot."""
        qkv, _ = self.qkv_proj(h)
        q, k, v = qkv.split(self.widths, dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        out, _ = self.o_proj(self.loops[t](q, k, v))
        return out


class OuroLayer(nn.Module):
    """h += N2(attention(N1 h)); h += N4(mlp(N3 h)): the residual stream itself is not normed."""

    def __init__(self, vllm_config: VllmConfig, index: int, model_prefix: str):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.self_attn = OuroAttention(vllm_config, index, model_prefix)
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            bias=config.mlp_bias,
            prefix=f"{model_prefix}.layers.{index}.mlp",
        )
        for name in ("input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2"):
            setattr(self, name, RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(self, positions: Tensor, h: Tensor, t: int) -> Tensor:
        """One layer of loop t."""
        h = h + self.input_layernorm_2(self.self_attn(positions, self.input_layernorm(h), t))
        return h + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(h)))


@support_torch_compile
class OuroModel(nn.Module):
    """The looped stack without its head, over the tokens of all requests in one row."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.n_loops = config.total_ut_steps
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size, prefix=f"{prefix}.embed_tokens")
        self.layers = nn.ModuleList(OuroLayer(vllm_config, i, prefix) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """h_T. (vLLM reads these annotations, and passes intermediate_tensors to pipeline stages, which there are none of.)"""
        h = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for t in range(self.n_loops):
            for layer in self.layers:
                h = layer(positions, h, t)
            h = self.norm(h)
        return h


class OuroForCausalLM(nn.Module, SupportsLoRA):
    """Ouro with its head."""

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    embedding_modules = {"embed_tokens": "input_embeddings", "lm_head": "output_embeddings"}
    lora_skip_prefixes = [GATE]
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={GATE: None},
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        },
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config = config = vllm_config.model_config.hf_config  # vLLM's LoRA looks for it here
        self.model = OuroModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "lm_head"))
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """h_0."""
        return self.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """h_T."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Next-token logits of h_T."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Fill the parameters from a checkpoint's tensors; the names of those filled."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

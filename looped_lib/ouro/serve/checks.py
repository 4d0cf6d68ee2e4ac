"""What a vLLM engine for Ouro may be asked for, checked before anything is loaded.

vLLM calls `EngineChecks` on its configuration in the process that makes the engine. Its own checks of memory come after the
weights are loaded and do not know that the number of loops multiplies the cache.
"""

import hashlib
import json
import os
from difflib import get_close_matches
from pathlib import Path

from transformers import AutoTokenizer
from vllm import envs
from vllm.config import ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from looped_lib.core.files import write_json
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.serve.kv_memory import check_cache_memory, kv_bytes_per_token
from looped_lib.tasks.tokenizer import TURN_END

logger = init_logger(f"vllm.{__name__}")  # vLLM shows what is logged under its own name


class EngineChecks(VerifyAndUpdateConfig):
    """ValueError on what cannot work, saying what would."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """The checks, and one line in the log about loops and memory."""
        model, parallel = vllm_config.model_config, vllm_config.parallel_config
        config = model.hf_config
        if not isinstance(config, OuroConfig):
            raise ValueError(
                f"this checkpoint's config.json names OuroForCausalLM but has model_type {config.model_type!r}: must be 'ouro'"
            )
        _check_overrides(model.hf_overrides)
        config.validate_architecture()  # overrides were set since it was read
        if config.early_exit_threshold is not None and config.early_exit_threshold < 1:
            logger.warning(
                "Ouro: early_exit_threshold %s is not used, as vLLM has no exit by the gate: every token takes all %d loops",
                config.early_exit_threshold,
                config.total_ut_steps,
            )
        _end_with_turns(model)
        if model.quantization is not None:
            raise ValueError(f"quantization must be none for Ouro, got {model.quantization!r}: serve the unquantised checkpoint")
        if parallel.pipeline_parallel_size != 1:
            raise ValueError(
                f"pipeline_parallel_size must be 1 for Ouro, got {parallel.pipeline_parallel_size}: every loop runs through all "
                "layers; use tensor_parallel_size for several devices"
            )
        if current_platform.is_cpu() and config.head_dim not in (sizes := CPUAttentionBackend.get_supported_head_sizes()):
            raise ValueError(f"head_dim must be one of {sizes} for vLLM on a CPU, got {config.head_dim}: use transformers")
        width = kv_cache_dtype_str_to_dtype(vllm_config.cache_config.cache_dtype, model).itemsize
        tensor_parallel = parallel.tensor_parallel_size
        logger.info(
            "Ouro: %d loops of %d layers, %.1f KiB of cache a token on each device",
            config.total_ut_steps,
            config.num_hidden_layers,
            kv_bytes_per_token(config, width, tensor_parallel) / 2**10,
        )
        sized_by_vllm = model.original_max_model_len == -1 or vllm_config.cache_config.num_gpu_blocks_override is not None
        if not sized_by_vllm:
            check_cache_memory(config, model.max_model_len, _cache_bytes_at_most(vllm_config), width, tensor_parallel)


def _end_with_turns(model: ModelConfig) -> None:
    """An answer ends with its turn: the base checkpoint's own generation_config.json names the end of a text alone.

    vLLM takes end tokens from a generation_config.json only, so it is given one that has both, in its cache folder.
    """
    if model.skip_tokenizer_init:
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.tokenizer, revision=model.tokenizer_revision)
    except (OSError, ValueError):  # vLLM is about to say what is wrong with it
        return
    known = model.try_get_generation_config()
    ends = known.get("eos_token_id", tokenizer.eos_token_id)
    ends = {*([ends] if isinstance(ends, int) else ends or [])}
    turn = tokenizer.get_vocab().get(TURN_END)
    if turn is None or turn in ends:
        return
    neutral = model.generation_config == "vllm"  # of the checkpoint's file, no temperature and the like
    wanted = {**({} if neutral else known), "eos_token_id": sorted({*ends, turn})}
    text = json.dumps(wanted, sort_keys=True)
    folder = Path(envs.VLLM_CACHE_ROOT) / "ouro_generation" / hashlib.sha256(text.encode()).hexdigest()[:16]
    write_json(folder / "generation_config.json", wanted)
    model.generation_config = str(folder)


def _check_overrides(overrides: object) -> None:
    """A misspelt name would leave the engine at the checkpoint's own loop count without a word."""
    known = OuroConfig().to_dict()
    for name in overrides if isinstance(overrides, dict) else ():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ValueError(f"hf_overrides: Ouro's config has no field {name!r}" + (f"; did you mean {near[0]!r}?" * bool(near)))


def _cache_bytes_at_most(vllm_config: VllmConfig) -> int:
    """The cache's memory on a device if it is stated, otherwise all that vLLM may use there."""
    cache = vllm_config.cache_config
    stated = os.environ.get("VLLM_CPU_KVCACHE_SPACE") if current_platform.is_cpu() else None
    if stated:
        return int(stated) * 2**30
    if cache.kv_cache_memory_bytes is not None:
        return cache.kv_cache_memory_bytes
    return int(cache.gpu_memory_utilization * current_platform.get_device_total_memory())

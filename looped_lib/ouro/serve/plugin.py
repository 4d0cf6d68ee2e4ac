"""Ouro on vLLM, by installing this package: `vllm serve CHECKPOINT` and `vllm.LLM(CHECKPOINT)` then know the architecture.

vLLM had an Ouro model of its own up to 0.26 and has none since. It calls `register` in each of its processes, by the entry point
vllm.general_plugins of pyproject.toml. A vLLM that still has its own model keeps it, unless the environment says
LOOPED_LIB_REPLACES_VLLM_OURO=1.

The number of loops is a constant of an engine: the checkpoint's total_ut_steps, or the one asked for.

    vllm serve CHECKPOINT --hf-overrides '{"total_ut_steps": 8}'
    vllm.LLM(CHECKPOINT, hf_overrides={"total_ut_steps": 8})
"""

import os

ARCHITECTURE = "OuroForCausalLM"
REPLACE = "LOOPED_LIB_REPLACES_VLLM_OURO"


def register() -> None:
    """Tell vLLM about Ouro's config, model and checks. The model is imported when a checkpoint asks for it."""
    from vllm import ModelRegistry

    if ARCHITECTURE in ModelRegistry.get_supported_archs() and os.environ.get(REPLACE) != "1":
        return

    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import looped_lib.ouro.model.configuration  # noqa: F401  makes AutoConfig read model_type "ouro"
    from looped_lib.ouro.serve.checks import EngineChecks

    ModelRegistry.register_model(ARCHITECTURE, f"looped_lib.ouro.serve.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = EngineChecks

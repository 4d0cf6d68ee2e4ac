"""What a fine-tuning starts from: architecture, tokenizer and weights, each checked as it is read.

Whatever is not there, or not Ouro's, is a ConfigError that names the field.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from looped_lib.core.checks import ConfigError
from looped_lib.core.files import read_json
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.ouro.model.modeling import OuroConfig

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_architecture(config: FinetuneConfig) -> OuroConfig:
    """The sizes of the model. ConfigError if it is not there or not Ouro."""
    _check_source(config, "model", config.model)
    try:
        architecture = AutoConfig.from_pretrained(config.model)
    except Exception as e:  # a damaged file may raise anything
        raise ConfigError(f"FinetuneConfig.model {config.model!r} could not be loaded: {_first_line(e)}") from None
    if not isinstance(architecture, OuroConfig):
        raise ConfigError(f"FinetuneConfig.model must be an Ouro model, got {config.model!r} of type {architecture.model_type!r}")
    return architecture


def load_tokenizer(config: FinetuneConfig) -> PreTrainedTokenizerBase:
    """The tokenizer; ConfigError if it is not there or has no chat template."""
    source = config.tokenizer or config.model
    _check_source(config, "tokenizer", source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as e:
        raise ConfigError(
            f"FinetuneConfig.tokenizer: {source!r} has no tokenizer that can be loaded ({_first_line(e)})"
        ) from None
    if not tokenizer.chat_template:
        raise ConfigError(f"FinetuneConfig.tokenizer {source!r} has no chat template: conversations cannot be written out")
    if not tokenizer.eos_token:
        raise ConfigError(f"FinetuneConfig.tokenizer {source!r} has no eos_token: answers have no end")
    _check_numbers(tokenizer, source)
    return tokenizer


def _check_numbers(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """ConfigError if the tokens of a local tokenizer.json do not each have a number of their own, the one that it gives.

    Its reader renumbers without a word, and of two tokens with one number another one each time.
    """
    file = Path(source) / "tokenizer.json"
    if not file.is_file():
        return
    said, read, owners = read_json(file), tokenizer.get_vocab(), {}
    vocab = said.get("model", {}).get("vocab", {})
    given = vocab if isinstance(vocab, dict) else {}  # a list with scores, whose order gives the numbers
    for token, number in (given | {token["content"]: token["id"] for token in said.get("added_tokens", [])}).items():
        if (other := owners.setdefault(number, token)) != token:
            raise ConfigError(f"{file}: {other!r} and {token!r} have the same id, {number}: give each its own")
        if read.get(token) != number:
            raise ConfigError(f"{file}: the id of {token!r} must be free and the next, {read.get(token)}, got {number!r}")


def load_model(config: FinetuneConfig, architecture: OuroConfig, checkpoint: Path | None = None) -> PreTrainedModel:
    """The model to train in float32, with the weights of `checkpoint` if given. ConfigError on weights that are not its own."""
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": config.updates.attention}
    if checkpoint is not None and not config.updates.lora_rank:
        model = _whole(str(checkpoint), architecture, options)
    elif config.from_scratch:
        model = AutoModelForCausalLM.from_config(architecture, **options)
    else:
        model = _whole(config.model, architecture, options)
    if config.loss == "last_loop":
        model.model.early_exit_gate.requires_grad_(False)  # it has no part in this loss
    if config.updates.compile:
        model.model.step = torch.compile(model.model.step, dynamic=True)
    if config.updates.lora_rank:
        model = _with_adapters(model, config, checkpoint)
    return model


def _whole(source: str, architecture: OuroConfig, options: dict[str, Any]) -> PreTrainedModel:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source, config=architecture, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, RuntimeError, SafetensorError) as e:
        raise ConfigError(f"the weights of {source!r} could not be loaded: {_first_line(e)}") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise ConfigError(f"the weights of {source!r} are not this model's: {kind} {sorted(map(str, info[kind]))[:3]}")
    return model


def _with_adapters(model: PreTrainedModel, config: FinetuneConfig, checkpoint: Path | None) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model  # slow to import, and only needed here

    if checkpoint is not None:
        return PeftModel.from_pretrained(model, checkpoint, is_trainable=True)
    rank = config.updates.lora_rank
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))


def _check_source(config: FinetuneConfig, name: str, source: str) -> None:
    """A path that does not exist would be looked for on the hub."""
    if not Path(source).is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ConfigError(f"FinetuneConfig.{name} must be an existing folder, or a name on the hub (owner/name), got {source!r}")


def _first_line(e: BaseException) -> str:
    """What an error says first; where that only announces the rest, the next line too."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(": ")

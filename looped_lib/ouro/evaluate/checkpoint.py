"""What a checkpoint of an evaluation is: a model, or a LoRA adapter on a base model; each a folder, or a name of the hub.

A fine-tuning with LoRA writes the adapter alone, whose adapter_config.json names the base.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from looped_lib.core.checks import ConfigError
from looped_lib.core.files import read_json
from looped_lib.core.project import runs_folder
from looped_lib.ouro.finetune.folder import DATA, MODEL
from looped_lib.ouro.finetune.saving import checkpoints, step_of
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM

_BLOCK, _BLOCKS = 2**16, 64
_NEVER = 1.0  # a threshold of the exit gate that is never reached: all loops run


@dataclass(frozen=True)
class Checkpoint:
    """Where the parts of a checkpoint are."""

    source: str
    """The folder or name that was given; the tokenizer is there."""
    base: str
    """Of the whole model: the same, or what the adapter was trained on."""
    adapter: Path | None
    """The adapter's folder."""

    def architecture(self, offline: bool = False) -> OuroConfig:
        """Sizes of the model. ConfigError if it is not an Ouro; whatever transformers raises if it is not there."""
        config = AutoConfig.from_pretrained(self.base, local_files_only=offline)
        if not isinstance(config, OuroConfig):
            raise ConfigError(f"{self.base!r} is a {config.model_type}, not an ouro")
        return config

    def tokenizer(self, offline: bool = False) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return AutoTokenizer.from_pretrained(self.source, local_files_only=offline)

    def model(self, dtype: str | torch.dtype, **config: Any) -> OuroForCausalLM:
        """The model in evaluation mode. `config` has fields of OuroConfig to change.

        An adapter is added to the base's weights in float32, W + (alpha / r) B A, and the sum rounded to `dtype` once. All loops
        run, whatever the checkpoint's early_exit_threshold says: a depth that is asked for is the depth.
        """
        config = {"early_exit_threshold": _NEVER, **config}
        if self.adapter is None:
            return OuroForCausalLM.from_pretrained(self.base, dtype=dtype, **config).eval()
        from peft import PeftModel  # slow to import, and only needed here

        base = OuroForCausalLM.from_pretrained(self.base, dtype=torch.float32, **config)
        merged = PeftModel.from_pretrained(base, self.adapter).merge_and_unload()
        for weight in merged.parameters():  # not Module.to, which would round the frequencies of the positions too
            weight.data = weight.data.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        return merged.eval()

    def weights(self, offline: bool = False) -> str:
        """A fingerprint of the weights, of both parts. FileNotFoundError if a folder has none."""
        base = fingerprint(Path(self.base)) if Path(self.base).is_dir() else str(self.architecture(offline)._commit_hash)
        return base if self.adapter is None else f"{base}+{fingerprint(self.adapter)}"

    @property
    def trained(self) -> dict[str, Any]:
        """The fine-tuning run whose model or checkpoint it is, and its updates until then: run, updates. Nothing of others."""
        path = Path(self.source).resolve()
        run = path.parent if path.name == MODEL else path.parent.parent
        if path in checkpoints(run):
            return {"run": run.name, "updates": step_of(path)}
        if path.name == MODEL and (run / DATA).exists():
            return {"run": run.name, "updates": read_json(run / DATA)["updates"]}
        return {}

    @property
    def is_here(self) -> bool:
        """Whether its weights are in folders of this machine."""
        return all(any(Path(part).glob("*.safetensors")) for part in (self.base, self.adapter) if part is not None)


def find_checkpoint(source: str, offline: bool = False) -> Checkpoint:
    """What a folder or a name of the hub holds. ConfigError on an adapter that is not LoRA, or that does not name its base."""
    found = find_adapter_config_file(source, local_files_only=offline)
    if found is None:
        return Checkpoint(source, source, None)
    adapter = read_json(found)
    base, kind = (adapter.get(key) for key in ("base_model_name_or_path", "peft_type"))
    if kind != "LORA" or not isinstance(base, str):
        raise ConfigError(f"{found} must be of a LoRA adapter (peft_type LORA) with its base_model_name_or_path")
    folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source, local_files_only=offline))
    return Checkpoint(source, from_here(base), folder)


def from_here(path: str) -> str:
    """A path from the working directory or, as notebooks do not run there, from the project's folder; others stay as they are."""
    folders = (Path(), runs_folder().parent)
    return next((str((folder / path).resolve()) for folder in folders if (folder / path).exists()), path)


def fingerprint(folder: Path) -> str:
    """Of a folder's weights: their sizes, and blocks from all over the files. FileNotFoundError if there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no .safetensors file")
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            for i in range(_BLOCKS):
                file.seek(i * size // _BLOCKS)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]

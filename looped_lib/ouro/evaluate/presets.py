"""Evaluations by preset.

smoke   a minute: does everything run?                     a tiny Ouro with random weights, on the word problems
cpu     minutes: the small models of notebook 05           on the word problems, at 1 to 16 loops
paper   Ouro-1.4B and its fine-tunings by notebook 05      the five benchmarks of arXiv 2605.26733 at 4 and 8 loops, on a GPU
"""

import shlex
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from looped_lib.core.checks import ConfigError
from looped_lib.core.project import find_root
from looped_lib.ouro.evaluate.cells import EvaluationConfig
from looped_lib.ouro.evaluate.checkpoint import find_checkpoint, from_here
from looped_lib.ouro.evaluate.checks import brief
from looped_lib.ouro.finetune import presets
from looped_lib.ouro.finetune.folder import MODEL
from looped_lib.ouro.finetune.saving import checkpoints as checkpoints_of
from looped_lib.ouro.finetune.saving import step_of
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM

DEPTHS = {"smoke": (2, 4), "cpu": (1, 2, 3, 4, 6, 8, 12, 16), "paper": (4, 8)}
# As the small models were trained.
SMALL = {"system_prompt": "", "max_len": 256, "max_new_tokens": 64, "dtype": "float32", "batch_size": 64}
SMALL_VLLM = {"enforce_eager": True, "kv_cache_memory_bytes": 2**28}  # starts in seconds


def evaluation(
    preset: str,
    out: str | Path,
    runs: str = "",
    checkpoints: str = "",
    tasks: str = "",
    depths: str | int = "",
    data: str = "",
    task_folder: str = "",
    limit: int = 0,
    backend: str = "",
    exits: str = "",
    every_step: bool = False,
) -> EvaluationConfig:
    """The evaluation of a preset, or of what is named instead: texts with spaces between, `name=path` where two belong together,
    in quotes where a path has spaces (`a='my runs/a' b=/b`).

    `runs` is the folder of notebook 05's runs (default: runs/ouro_finetune/PRESET); with `every_step` their checkpoints/step_...
    are evaluated beside their models, those of runs at work too. The backend is vLLM for `paper` where it is installed; a small
    model has answered with transformers before a vLLM has started.
    ConfigError on what cannot be read, and if there is nothing to evaluate.
    """
    if preset not in presets.PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(presets.PRESETS)}, got {preset!r}")
    backend = backend or ("vllm" if preset == "paper" and find_spec("vllm") else "transformers")
    settings: dict[str, Any] = {} if preset == "paper" else {"tasks": ("word_problems",), **SMALL}
    if preset != "paper" and backend == "vllm":
        settings["engine"] = SMALL_VLLM
    if tasks:
        settings["tasks"] = tuple(_words("tasks", tasks))
    return EvaluationConfig(
        **settings,
        checkpoints=_pairs("checkpoints", checkpoints) or _checkpoints(preset, Path(out), runs, every_step),
        depths=_numbers(depths) or DEPTHS[preset],
        exits=_thresholds(exits),
        data=_pairs("data", data),
        task_folder=task_folder and from_here(task_folder),
        limit=limit or (4 if preset == "smoke" else 0),
        backend=backend,
    )


def write_random(folder: Path, preset: str = "smoke") -> Path:
    """A checkpoint of a small preset's architecture with random weights and the tokenizer of data/, the same each time."""
    presets.write_architecture(folder, preset)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        OuroForCausalLM(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(find_root() / "data" / "tokenizer").save_pretrained(folder)
    return folder


def _checkpoints(preset: str, out: Path, runs: str, every_step: bool) -> dict[str, str]:
    if preset == "smoke":
        return {"random": str(write_random(out / "random_weights"))}
    root = Path(from_here(runs or f"runs/ouro_finetune/{preset}"))
    fitting, large = {}, OuroConfig().vocab_size
    named = {folder.parent.name: folder for folder in sorted(root.glob(f"*/{MODEL}"))}
    for run in sorted(root.glob("*")) if every_step else ():
        named |= {f"{run.name}.step_{step_of(folder)}": folder for folder in checkpoints_of(run)}
    for name, folder in named.items():
        try:
            vocab_size = find_checkpoint(str(folder)).architecture().vocab_size
        except (OSError, ValueError) as e:
            warnings.warn(f"{folder} is left out: {brief(e)}", stacklevel=3)
            continue
        if (vocab_size == large) == (preset == "paper"):
            fitting[name] = str(folder)
    if preset == "paper":
        return {"base": "ByteDance/Ouro-1.4B", **fitting}
    if not fitting:
        raise ConfigError(f"no small models under {root}: run notebook 05 (preset cpu), or name checkpoints")
    return fitting


def _pairs(what: str, text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in _words(what, text)]
    if not all(name and sign and path for name, sign, path in pairs):
        raise ConfigError(
            f"{what} must be name=path, with spaces between several, and quotes around a path with spaces, got {text!r}"
        )
    return {name: from_here(path) for name, _, path in pairs}


def _words(what: str, text: str) -> list[str]:
    """The parts of a text with spaces between; quotes keep the spaces of a part."""
    try:
        return shlex.split(text)
    except ValueError as e:
        raise ConfigError(f"{what}: {text!r} cannot be split at its spaces: {e}") from None


def _thresholds(text: str) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for by, _, threshold in (part.partition("=") for part in text.split()):
        try:
            found[by] = (*found.get(by, ()), float(threshold))
        except ValueError:
            raise ConfigError(f"exits must be criterion=threshold, with spaces between several, got {text!r}") from None
    return found


def _numbers(text: str | int) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in str(text).split()):
        raise ConfigError(f"depths must be loop counts with spaces between, got {text!r}")
    return tuple(map(int, str(text).split()))

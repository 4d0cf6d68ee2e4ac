"""Checkpoints of a fine-tuning run: whole or not there, the same for one process, DDP and FSDP2.

    RUN/checkpoints/step_00000300/
      model.safetensors, config.json, tokenizer    a model folder that from_pretrained loads (with LoRA: the adapter)
      training.state                               AdamW's moments under the parameters' names, every rank's random state
      trainer_state.json, schedule.json            where the Trainer and its learning rate stand
      run.json                                     the run's FinetuneConfig: a checkpoint of another run is refused
      sha256.json                                  of each of these files: a damaged or exchanged one is refused

`training.state` has the format of safetensors but not their suffix: vLLM loads every .safetensors file of a folder as weights.
Nothing is pickled. A checkpoint holds whole tensors, not shards, so that a run may go on with more or fewer processes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers.trainer import TRAINER_STATE_NAME

from looped_lib.config import from_dict, to_dict
from looped_lib.core.files import read_json, replacing_folder
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.ouro.finetune.folder import differing
from looped_lib.training.checkpoints import CheckpointError, remedy

TRAINING, SCHEDULE, RUN, SUMS = "training.state", "schedule.json", "run.json", "sha256.json"


class SaveError(RuntimeError):
    """A folder that could not be written, on a full disk for instance; the message says what is left and what to do."""


def checkpoint_folder(run_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of `step` updates is."""
    return Path(run_dir) / "checkpoints" / f"step_{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Updates after which it was made."""
    return int(checkpoint.name.removeprefix("step_"))


def checkpoints(run_dir: str | Path) -> list[Path]:
    """All checkpoints of a run, the oldest first. Every one is whole."""
    return sorted(p for p in (Path(run_dir) / "checkpoints").glob("step_????????") if p.name.removeprefix("step_").isdecimal())


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every trained and frozen weight, gathered onto the first process's CPU (empty elsewhere). All processes must call."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def whole_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as {"<parameter>.exp_avg": tensor, ...}, gathered likewise. All processes must call."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options).get("state", {})
    return {f"adamw.{name}.{key}": torch.as_tensor(value) for name, values in state.items() for key, value in values.items()}


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """What `whole_moments` gave, into an optimizer whose parameters may be sharded."""
    groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
    state: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, key = name.removeprefix("adamw.").rsplit(".", 1)
        state.setdefault(parameter, {})[key] = tensor
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, {"state": state, "param_groups": groups}, options=options)


def random_states() -> dict[str, Tensor]:
    """The random state of every process, by rank. All processes must call."""
    mine = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})
    everyone = [mine]
    if dist.is_initialized():
        everyone = [{}] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
    return {f"random.{rank}.{device}": state for rank, states in enumerate(everyone) for device, state in states.items()}


def set_random_state(tensors: dict[str, Tensor], rank: int) -> None:
    """Put back this process's random state; a rank that had none goes on with what its seed gave."""
    if (state := tensors.get(f"random.{rank}.cpu")) is not None:
        torch.set_rng_state(state)
    if torch.cuda.is_available() and (state := tensors.get(f"random.{rank}.cuda")) is not None:
        torch.cuda.set_rng_state(state)


@contextmanager
def writing(target: Path, run_dir: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` of the run, whole or not at all. SaveError if it cannot be written."""
    try:
        with replacing_folder(target) as folder:
            yield folder
    except (OSError, SafetensorError) as e:
        kept = ", ".join(path.name for path in checkpoints(run_dir)) or "none"
        raise SaveError(
            f"{target} could not be written ({e}). Whole checkpoints: {kept}. Make room and give the same command again: it goes "
            "on from the newest"
        ) from e


def write_training(folder: Path, tensors: dict[str, Tensor], schedule: dict[str, Any], config: FinetuneConfig) -> None:
    """Write optimizer, random states, schedule and config into a checkpoint's folder."""
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / TRAINING)
    (folder / SCHEDULE).write_text(json.dumps(schedule))
    (folder / RUN).write_text(json.dumps(to_dict(config)))


def write_sums(folder: Path) -> None:
    """Write the checksums of all files of a checkpoint's folder, as its last file."""
    (folder / SUMS).write_text(json.dumps({path.name: _sum(path) for path in folder.iterdir()}, indent=1))


def check_sums(folder: Path) -> None:
    """CheckpointError, naming the file, if one of a checkpoint is missing or damaged. Reads all of it."""
    sums = read_json(folder / SUMS)
    for name in sorted({*sums, TRAINING, *(path.name for path in folder.glob("*.safetensors"))}):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; {remedy(folder)}")
        if _sum(folder / name) != sums.get(name):
            raise CheckpointError(f"{folder / name} is damaged: its checksum is not the one in {SUMS}; {remedy(folder)}")


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_training(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`. CheckpointError if the file cannot be read."""
    path = folder / TRAINING
    try:
        return {k: v for k, v in load_file(path).items() if k.startswith(prefix)}
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{path} cannot be read ({e}); {remedy(folder)}") from None


def check(folder: Path, config: FinetuneConfig, steps: int) -> None:
    """CheckpointError if a checkpoint is not one of a run of `config`, of `steps` updates, after as many as its name says."""
    if not (folder / SUMS).exists():
        raise CheckpointError(
            f"{folder} has no {SUMS}: it is of an earlier version, and nothing tells whether it is whole and of this run. Start "
            f"a new run with it as FinetuneConfig.model, or delete {folder.parent} to begin anew"
        )
    wrong = ""
    for name in (TRAINER_STATE_NAME, SCHEDULE, RUN, SUMS):
        try:
            found = read_json(folder / name)
        except (OSError, ValueError, RecursionError) as e:
            raise CheckpointError(f"{folder / name} cannot be read ({e}); {remedy(folder)}") from None
        if not isinstance(found, dict):
            wrong = "must be a mapping"
        elif name == TRAINER_STATE_NAME and found.get("global_step") != step_of(folder):
            wrong = f"global_step must be {step_of(folder)}, as its folder says, got {found.get('global_step')!r}"
        elif name == TRAINER_STATE_NAME and step_of(folder) > steps:
            wrong = f"global_step must be at most {steps}, got {step_of(folder)}"
        elif name == RUN and (other := differing(from_dict(FinetuneConfig, found, str(folder / name)), config)):
            wrong = f"it is of a run with other settings ({', '.join(other)})"
        if wrong:
            raise CheckpointError(f"{folder / name}: {wrong}; {remedy(folder)}")


def check_moments(folder: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """CheckpointError, naming the tensor, if a moment has another size than its parameter."""
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, moment in tensors.items():
        size = sizes.get(name.removeprefix("adamw.").rpartition(".")[0])
        if moment.ndim and size is not None and tuple(moment.shape) != size:
            what = f"the size of {name} must be {size}, got {tuple(moment.shape)}"
            raise CheckpointError(f"{folder / TRAINING}: {what}; {remedy(folder)}")


def prune(run_dir: str | Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints. One that is half deleted is no checkpoint by its name."""
    for old in checkpoints(run_dir)[:-keep]:
        leaving = old.with_name(f".partial_{old.name}")  # what is left of it after a kill, `replacing_folder` clears away
        os.replace(old, leaving)
        shutil.rmtree(leaving)

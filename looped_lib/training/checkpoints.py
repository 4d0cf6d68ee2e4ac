"""Atomic checkpoints: safetensors and JSON in one folder, written aside and renamed into place.

    checkpoints/step_00001000/
      model.safetensors      the weights, under the module's own names
      training.safetensors   optimiser moments, carried states, persistent probe vectors
      state.json             step, config, processes, threads, and the SHA-256 of both files

A rename is atomic, so a process killed at any instant leaves either no folder or a whole one. Reading verifies the checksums, and
that the checkpoint is what its folder's name and its run say: a copy in the wrong place is refused, not trained on.
"""

import hashlib
import json
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as dump
from torch import Tensor, nn

from looped_lib.core.files import replacing_folder

KEEP = 2  # in a run at work: the newest, and one before it in case the disk spoils the newest
NAME = "step_"  # and eight digits
MODEL, TRAINING, STATE = "model.safetensors", "training.safetensors", "state.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given, and where it is."""

    path: Path
    step: int
    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    state: dict[str, Any]

    def warn_of_other_threads(self) -> None:
        """A warning if the CPU sums in another order here than in the process that saved it."""
        here = torch.get_num_threads()
        if (threads := self.state.get("threads", here)) != here:
            warnings.warn(
                f"{self.path} was saved by a process with {threads} threads, and this one has {here}: the run will not end in "
                f"the same weights to the last bit. For those, set OMP_NUM_THREADS={threads}",
                stacklevel=3,
            )

    def load_into(self, model: nn.Module) -> None:
        """Give `model` the weights. CheckpointError, naming the tensor, if they or the moments are not of its sizes."""
        _check_sizes(self.path / MODEL, self.weights, model.state_dict())
        parameters = dict(model.named_parameters())
        moments = {k: v for k, v in self.training.items() if k.startswith("adamw.") and v.ndim}
        owners = {k: parameters.get(k.removeprefix("adamw.").rpartition(".")[0]) for k in moments}
        _check_sizes(self.path / TRAINING, moments, {k: p for k, p in owners.items() if p is not None})
        model.load_state_dict(self.weights)


def save(folder: Path, step: int, weights: dict[str, Tensor], training: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` under `folder` atomically, then delete all but the newest two."""
    target = folder / folder_name(step)
    sums = {}
    with replacing_folder(target) as partial:
        for name, tensors in ((MODEL, weights), (TRAINING, training)):
            copies = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            shared = Counter(v.data_ptr() for v in copies.values())  # a head tied to the embedding, say: each has its own copy
            blob = dump(
                {k: v.clone() if shared[v.data_ptr()] > 1 else v for k, v in copies.items()}
            )  # written here, a full disk is an OSError
            (partial / name).write_bytes(blob)  # not by safetensors: a full disk is an OSError
            sums[name] = hashlib.sha256(blob).hexdigest()
        (partial / STATE).write_text(json.dumps({**state, "step": step, "sha256": sums}, indent=1))
    keep_newest(folder, KEEP)
    return target


def keep_newest(folder: Path, n: int) -> None:
    """Delete all but the newest `n` checkpoints under `folder`."""
    for old in _steps(folder)[:-n]:
        shutil.rmtree(old)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint under `folder`, or None if there is none. CheckpointError if it is damaged."""
    steps = _steps(folder)
    return read(steps[-1]) if steps else None


def read(path: Path) -> Checkpoint:
    """The checkpoint in the folder `path`. CheckpointError if a file is missing, damaged, or of another step than it."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        step, sums = state["step"], {name: state["sha256"][name] for name in (MODEL, TRAINING)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        why = f"it has no {e}" if isinstance(e, KeyError) else e
        raise CheckpointError(f"{path / STATE} cannot be read ({why}); {remedy(path)}") from None
    right = int(path.name.removeprefix(NAME))
    if type(step) is not int or step != right:
        raise CheckpointError(f"{path / STATE}: step must be {right}, as its folder says, got {step!r}; {remedy(path)}")
    tensors = []
    for name in (MODEL, TRAINING):
        try:
            blob = (path / name).read_bytes()
            if hashlib.sha256(blob).hexdigest() != sums[name]:
                raise CheckpointError(f"{path / name} is damaged: its checksum is not the one in {STATE}; {remedy(path)}")
            tensors.append(load(blob))
        except (OSError, SafetensorError) as e:
            raise CheckpointError(f"{path / name} cannot be read ({e}); {remedy(path)}") from None
    return Checkpoint(path, step, tensors[0], tensors[1], state)


def _check_sizes(file: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """CheckpointError, naming file and tensor, if the tensors found in a checkpoint's file are not those expected."""
    for name in sorted({*found, *expected}):
        mine, theirs = (tuple(t[name].shape) if name in t else "none" for t in (expected, found))
        if mine != theirs:
            raise CheckpointError(f"{file}: the size of {name} must be {mine}, got {theirs}; {remedy(file.parent)}")


def remedy(path: Path) -> str:
    """What to do about the checkpoint in the folder `path`."""
    return f"delete {path} to go on from the checkpoint before it"


def folder_name(step: int) -> str:
    """The name of the checkpoint of `step`."""
    return f"{NAME}{step:08d}"


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{NAME}????????") if path.name.removeprefix(NAME).isdecimal())

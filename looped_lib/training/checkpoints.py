"""Checkpoints that cannot be half there: safetensors and JSON in one folder, written aside and renamed into place.

    checkpoints/step_00001000/
      model.safetensors      the weights, under the module's own names
      training.safetensors   optimiser moments, carried states, persistent probe vectors
      state.json             step, config, and the SHA-256 of both files

A rename is atomic, so a process killed at any instant leaves either no folder or a whole one. Reading verifies the checksums.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load
from safetensors.torch import save as dump
from torch import Tensor, nn

from looped_lib.core.files import replacing_folder

KEEP = 2  # in a run at work: the newest, and one before it in case the disk spoils the newest


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given."""

    step: int
    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, weights: dict[str, Tensor], training: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` under `folder` atomically, then delete all but the newest two."""
    target = folder / f"step_{step:08d}"
    sums = {}
    with replacing_folder(target) as partial:
        for name, tensors in (("model.safetensors", weights), ("training.safetensors", training)):
            blob = dump({k: v.detach().cpu().contiguous() for k, v in tensors.items()})  # written here, a full disk is an OSError
            (partial / name).write_bytes(blob)
            sums[name] = _sha256(blob)
        (partial / "state.json").write_text(json.dumps({**state, "step": step, "sha256": sums}, indent=1))
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
    """The checkpoint in the folder `path`. CheckpointError if a file is missing or its checksum is wrong."""
    remedy = f"delete {path} to go on from the checkpoint before it"
    try:
        state = json.loads((path / "state.json").read_text())
        sums = state["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path / 'state.json'} cannot be read ({e}); {remedy}") from None
    tensors = []
    for name in ("model.safetensors", "training.safetensors"):
        try:
            blob = (path / name).read_bytes()
        except OSError as e:
            raise CheckpointError(f"{path / name} cannot be read ({e}); {remedy}") from None
        if _sha256(blob) != sums.get(name):
            raise CheckpointError(f"{path / name} is damaged: its checksum is not the one in state.json; {remedy}")
        tensors.append(load(blob))
    return Checkpoint(state["step"], tensors[0], tensors[1], state)


def load_weights(model: nn.Module, found: Checkpoint) -> None:
    """Give a model the weights of a checkpoint. CheckpointError if they are of other names or sizes."""
    try:
        model.load_state_dict(found.weights)
    except RuntimeError as e:
        reason = str(e).splitlines()[-1].strip()
        raise CheckpointError(
            f"the checkpoint of step {found.step} holds weights of another config ({reason}): delete it"
        ) from None


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_????????"))


def _sha256(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()

"""Checkpoints: what is saved comes back; what is damaged is refused with the file's name; a kill while saving loses nothing."""

import os

import pytest
import torch

from looped_lib.training import checkpoints

WEIGHTS = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor([1, 2])}
TRAINING = {"adamw.w.step": torch.tensor(3.0)}


def save(folder, step):
    return checkpoints.save(folder, step, WEIGHTS, TRAINING, {"config": {"seed": 1}})


def test_round_trip(tmp_path):
    save(tmp_path, 7)
    found = checkpoints.latest(tmp_path)
    assert found.step == 7 and found.state["config"] == {"seed": 1}
    for mine, theirs in ((WEIGHTS, found.weights), (TRAINING, found.training)):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_the_newest_two_are_kept(tmp_path):
    for step in (1, 2, 10, 30):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000010", "step_00000030"]


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoints.latest(tmp_path / "nothing") is None


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        save(tmp_path, 2)
    assert checkpoints.latest(tmp_path).step == 1
    monkeypatch.undo()
    save(tmp_path, 2)
    assert checkpoints.latest(tmp_path).step == 2 and not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damage_is_refused_by_name(tmp_path, name, damage):
    path = save(tmp_path, 1) / name
    blob = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(blob[: len(blob) // 2])
    else:
        blob[0 if name == "state.json" else -1] ^= 1
        path.write_bytes(blob)
    with pytest.raises(checkpoints.CheckpointError, match=f"{name}.*delete"):
        checkpoints.latest(tmp_path)

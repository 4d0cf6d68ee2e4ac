"""Problems of other sizes: never those of the training, and measured as `depth_curve` measures."""

import pytest
import torch

from looped_lib.core.files import read_json
from looped_lib.dynamics.depth import depth_curve
from looped_lib.runs import digits
from looped_lib.runs.digits import curves_by_digits, held_out_digits
from looped_lib.studies.paper import base
from looped_lib.tasks.addition import Addition, generate_operands, save_jsonl
from looped_lib.training.trainer import load_model, train


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_no_problem_was_trained_on(size, tmp_path):
    save_jsonl(tmp_path / "train", *generate_operands(2, 6000, seed=0))
    save_jsonl(tmp_path / "test", *generate_operands(2, 10, seed=0, skip=6000))
    files = {"train_file": str(tmp_path / "train"), "test_file": str(tmp_path / "test")}
    for config in (Addition(digits=2, n_train=6000, n_test=10), Addition(**files)):
        problems = held_out_digits(config, size, 80).texts()
        assert len(set(problems)) == 80 and not set(problems) & set(config.training().texts())
        assert {len(operand) for text in problems for operand in text.split("=")[0].split("+")} == {size}
        with pytest.raises(ValueError, match="there are 8100 problems of 2 digits, fewer than"):
            held_out_digits(config, 2, 2101)


def test_what_is_recorded_of_a_run(tmp_path, capsys, monkeypatch):
    train(base("smoke"), tmp_path, progress=False)
    monkeypatch.setattr(digits, "MAX_DEPTH", 3)
    digits.main([str(tmp_path)])
    found = read_json(tmp_path / "digits.json")
    assert found["depths"] == [0, 1, 2, 3] and list(found["accuracy"]) == ["2", "3", "4"]  # 16 positions: up to 4 digits
    for d, curve in curves_by_digits(tmp_path, [2, 3, 4], 3).items():
        assert found["accuracy"][str(d)] == curve.accuracy.tolist()
    assert "% of 4 digits" in capsys.readouterr().out
    assert digits.record_digits(tmp_path) == found


def test_a_run_at_every_length(tmp_path):
    config = base("smoke")
    train(config, tmp_path, progress=False)
    curves = curves_by_digits(tmp_path, [1, 2, 4], 5, n=32)
    assert list(curves) == [1, 2, 4] and all(c.correct.shape == (32, 6) for c in curves.values())
    expected = depth_curve(load_model(tmp_path), config.data.held_out(), 5)
    assert torch.equal(curves[2].state_norm, expected.state_norm)
    with pytest.raises(ValueError, match="max_len is 16 positions, but the sequence has 1[89]"):
        curves_by_digits(tmp_path, [5], 5, n=32)

"""The GPU's timings: every part runs (here on the CPU, at tiny sizes), and says what it says."""

import pytest
import torch

from looped_lib.bench import gpu, train_step
from looped_lib.config import ModelConfig
from looped_lib.core.files import read_json
from looped_lib.ouro.model.configuration import OuroConfig

TINY = OuroConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)


def test_all_parts_are_measured_and_written(tmp_path):
    step = train_step.paper_step(2, 8, ModelConfig(d_model=16, n_heads=2, d_ff=32, max_len=20))
    gpu.measure(tmp_path / "timings.json", torch.device("cpu"), step, TINY, tokens=8, repeats=1)
    found = read_json(tmp_path / "timings.json")
    for name in ("plain", "penalised"):
        ours = found["step"][name]["fp32"]
        assert ours["naive_over_ours"] == pytest.approx(found["step"][name]["naive"]["seconds"] / ours["seconds"])
    assert set(found["ouro"]) == {"sft-4", "stars-4", "sft-8", "stars-8", "update_seconds"}
    assert all(found["ouro"][name]["tokens_per_sec"] > 0 for name in ("sft-4", "stars-8"))


def test_what_does_not_fit_says_so(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")

    monkeypatch.setattr(gpu, "_measured", full)
    found = gpu.ouro_timings(TINY, 8, (2,), torch.device("cpu"), 1)
    assert found.pop("update_seconds") > 0
    assert found == {name: {"error": "CUDA out of memory. Tried to allocate"} for name in ("sft-2", "stars-2")}


def test_without_a_gpu_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([str(tmp_path / "timings.json")])
    assert "there is no GPU" in capsys.readouterr().err

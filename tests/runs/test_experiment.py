"""run_experiment: trains, measures every depth, writes a self-describing result, and never does finished work again."""

import itertools
import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from looped_lib.config import ConfigError
from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import find_root
from looped_lib.dynamics.depth import DepthCurve
from looped_lib.runs import experiment
from looped_lib.runs.experiment import by_depth, recorded_depths, run_experiment
from looped_lib.runs.folders import find_runs
from looped_lib.studies.paper import base
from looped_lib.training.metrics import read_metrics
from looped_lib.training.trainer import train


def test_result_describes_the_run_and_is_loaded_the_second_time(tmp_path, monkeypatch):
    config = base("smoke")
    result = run_experiment(config, tmp_path, max_depth=5, progress=False)
    assert result["depths"] == list(range(6))
    for name in ("accuracy", "state_norm", "residual", "lenient"):
        assert len(result[name]) == 6
    assert all(0 <= a <= 1 for a in result["accuracy"])
    assert result["residual"][0] is None and all(r > 0 for r in result["residual"][1:])
    assert result["n_test"] == config.data.n_test and result["provenance"]
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))

    monkeypatch.setattr(experiment, "train", lambda *a: pytest.fail("trained again"))
    assert run_experiment(config, tmp_path, max_depth=5) == json.loads(json.dumps(result))


def test_a_run_from_before_a_field_existed_is_the_run_of_its_default(tmp_path, monkeypatch):
    config = base("smoke")
    expected = run_experiment(config, tmp_path, max_depth=3, progress=False)
    for name in ("config.json", "result.json"):
        old = read_json(tmp_path / name)
        of_model = (old if name == "config.json" else old["config"])["model"]
        del of_model["injection"], of_model["initial_state"]
        write_json(tmp_path / name, old)
    train(config, tmp_path, progress=False)  # the folder is still this experiment's
    with pytest.raises(ConfigError, match="another experiment .model.injection 'none' there, 'add' here.: give"):
        train(replace(config, model=replace(config.model, injection="add")), tmp_path, progress=False)
    monkeypatch.setattr(experiment, "train", lambda *a: pytest.fail("trained again"))
    assert run_experiment(config, tmp_path, max_depth=3)["accuracy"] == expected["accuracy"]


def test_deep_results_stay_small(tmp_path, monkeypatch):
    """Every depth up to 200, then geometric, with the round numbers and the last; the lowest is over all depths."""
    depths = recorded_depths(10_000)
    assert depths[:201] == list(range(201)) and depths[-1] == 10_000 and len(depths) < 420
    assert {500, 1000, 2000, 5000} < set(depths)
    assert max(b / a for a, b in itertools.pairwise(depths[200:])) < 1.025
    assert recorded_depths(300)[-1] == 300 and set(recorded_depths(300)[:-1]) < set(depths)
    assert recorded_depths(7) == list(range(8)) and recorded_depths(200) == list(range(201))

    hidden = next(d for d in range(250, 400) if d not in recorded_depths(400))
    correct = torch.ones(2, 401, dtype=torch.bool)
    correct[0, :4], correct[0, hidden:302] = False, False
    curve = DepthCurve(correct, correct, torch.arange(401.0), torch.arange(401.0))
    monkeypatch.setattr(experiment, "depth_curve", lambda *a, **k: curve)
    result = run_experiment(base("smoke"), tmp_path, max_depth=400, progress=False)
    assert result["lowest"] == {"from": 4, "accuracy": 0.5, "depth": hidden}
    assert result["depths"] == result["state_norm"] == result["residual"] == recorded_depths(400)
    assert by_depth({"a": result}, 12) == {"depths": list(range(13)), "accuracy": {"a": [0.5] * 4 + [1.0] * 9}}

    monkeypatch.setattr(experiment, "train", lambda *a: pytest.fail("trained again"))
    assert run_experiment(base("smoke"), tmp_path, max_depth=399) == json.loads(json.dumps(result))


def test_no_depth_to_hold_no_lowest(tmp_path):
    assert "lowest" not in run_experiment(base("smoke"), tmp_path, max_depth=3, progress=False)


def test_runs_of_different_depth_are_shown_where_all_were_measured():
    results = {
        "a": {"depths": [0, 1, 2, 9], "accuracy": [0.0, 0.1, 0.2, 0.9]},
        "b": {"depths": [0, 2, 5], "accuracy": [1.0, 0.8, 0.5]},
    }
    assert by_depth(results, 9) == {"depths": [0, 2], "accuracy": {"a": [0.0, 0.2], "b": [1.0, 0.8]}}


def test_a_deeper_measurement_reuses_the_weights(tmp_path):
    config = base("smoke")
    shallow = run_experiment(config, tmp_path, max_depth=3, progress=False)
    deep = run_experiment(config, tmp_path, max_depth=6, progress=False)
    assert deep["depths"] == list(range(7)) and deep["accuracy"][:4] == shallow["accuracy"]


def test_seconds_of_training_are_those_of_all_attempts(tmp_path, monkeypatch):
    """Stopped in its first step, and measured once more: the record says what metrics.jsonl sums up."""
    config, clip = base("smoke"), torch.nn.utils.clip_grad_norm_

    def stopped(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return clip(*args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch.nn.utils, "clip_grad_norm_", stopped)
        run_experiment(config, tmp_path, max_depth=3, progress=False)
    (first,) = read_metrics(tmp_path / "metrics.jsonl")
    for max_depth in (3, 5):
        seconds = run_experiment(config, tmp_path, max_depth, progress=False)["seconds"]
        assert seconds["train"] == read_metrics(tmp_path / "metrics.jsonl")[-1]["seconds"] > first["seconds"] > 0
        assert seconds.keys() == {"train", "evaluate"}


def test_recorded_seconds_are_those_of_all_attempts():
    records = [run for run in find_runs(find_root() / "runs" / "recorded") if len(run.metrics())]
    for run in records:
        assert run.result["seconds"]["train"] > 0.9 * run.metrics()["seconds"].iloc[-1], run.folder
    assert len(records) > 250


def test_a_finished_run_without_weights_is_not_measured_by_training_it_again(tmp_path):
    """Its record would be lost, in runs/recorded for instance."""
    config = base("smoke")
    recorded = run_experiment(config, tmp_path, max_depth=3, progress=False)
    shutil.rmtree(tmp_path / "checkpoints")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(FileNotFoundError, match="is finished, but its checkpoint is not there.*another folder"):
        run_experiment(config, tmp_path, max_depth=6, progress=False)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert run_experiment(config, tmp_path, max_depth=3)["accuracy"] == recorded["accuracy"]
    assert recorded["provenance"]["threads"] == torch.get_num_threads()

"""run_experiment: trains, measures every depth, writes a self-describing result, and never does finished work again."""

import json
from dataclasses import replace

import pytest

from looped_lib import experiment
from looped_lib.config import ConfigError
from looped_lib.experiment import run_experiment
from looped_lib.files import read_json, write_json
from looped_lib.presets import base
from looped_lib.training import train


def test_result_describes_the_run_and_is_loaded_the_second_time(tmp_path, monkeypatch):
    config = base("smoke")
    result = run_experiment(config, tmp_path, max_depth=5, progress=False)
    assert result["depths"] == list(range(6))
    for name in ("accuracy", "state_norm", "residual"):
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
    with pytest.raises(ConfigError, match="another experiment .*differs in model"):
        train(replace(config, model=replace(config.model, injection="add")), tmp_path, progress=False)
    monkeypatch.setattr(experiment, "train", lambda *a: pytest.fail("trained again"))
    assert run_experiment(config, tmp_path, max_depth=3)["accuracy"] == expected["accuracy"]


def test_a_deeper_measurement_reuses_the_weights(tmp_path):
    config = base("smoke")
    shallow = run_experiment(config, tmp_path, max_depth=3, progress=False)
    deep = run_experiment(config, tmp_path, max_depth=6, progress=False)
    assert deep["depths"] == list(range(7)) and deep["accuracy"][:4] == shallow["accuracy"]

"""run_experiment: trains, measures every depth, writes a self-describing result, and never does finished work again."""

import json

import pytest

from looped_lib import experiment
from looped_lib.experiment import run_experiment
from looped_lib.presets import base


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


def test_a_deeper_measurement_reuses_the_weights(tmp_path):
    config = base("smoke")
    shallow = run_experiment(config, tmp_path, max_depth=3, progress=False)
    deep = run_experiment(config, tmp_path, max_depth=6, progress=False)
    assert deep["depths"] == list(range(7)) and deep["accuracy"][:4] == shallow["accuracy"]

"""Trackers hear of the addition training what metrics.jsonl does, by transformers' own callbacks."""

import pytest
from small_runs import plain
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from looped_lib.config import TrainingConfig
from looped_lib.core.checks import ConfigError
from looped_lib.training.metrics import read_metrics
from looped_lib.training.trainer import Trainer, train


def test_a_tracker_gets_the_lines_of_the_metrics_file(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    train(plain(log_every=2, report_to=("tensorboard",)), tmp_path / "run", progress=False)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("loss", "n_loops", "loops_per_sec"):
        heard = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert [step for step, _ in heard] == [2, 4]
        assert [value for _, value in heard] == pytest.approx([line[name] for line in lines])


def test_a_tracker_that_is_not_there_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["tensorboard"])
    config = plain(report_to=("tensorboard", "trackio"))
    with pytest.raises(ConfigError, match="TrainingConfig.report_to: trackio is not installed: pip install trackio"):
        Trainer(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="TrainingConfig.report_to must be a list with none or some of tensorboard, wandb"):
        TrainingConfig(report_to=("w&b",))
    assert not (tmp_path / "run").exists()

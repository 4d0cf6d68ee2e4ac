"""metrics.jsonl: averages since the last line, nothing twice after a kill, the first non-finite loss reported."""

import json

import pytest
import torch

from looped_lib.training.metrics import MetricsLog


def values(loss: float) -> dict:
    return {"loss": torch.tensor(loss), "penalty": 0.5, "n_loops": 3.0}


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_the_mean_since_the_line_before(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0, every=2)
    for step, loss in enumerate([1.0, 3.0]):
        log.add(step, values(loss))
    assert log.flush() is None and log.flush() is None  # nothing pending the second time
    log.add(2, values(5.0))
    log.flush()
    first, second = lines(path)
    assert (first["step"], first["loss"], first["penalty"]) == (2, 2.0, 0.5)
    assert (second["step"], second["loss"]) == (3, 5.0)
    assert second["seconds"] >= first["seconds"] > 0 and first["loops_per_sec"] > 0


def test_a_resumed_log_drops_later_and_half_written_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "seconds": 1.5}\n{"step": 4, "seconds": 2.5}\n{"step": 6, "sec')
    log = MetricsLog(path, 2, every=2)
    log.add(2, values(1.0))
    log.flush()
    assert [line["step"] for line in lines(path)] == [2, 3]
    assert lines(path)[-1]["seconds"] > 1.5


def test_a_line_that_is_not_finite_is_reported_and_not_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, every=3)
    for step, loss in enumerate([1.0, float("inf"), float("nan")]):
        log.add(step, values(loss))
    bad = log.flush()
    assert bad["step"] == 1 and bad["loss"] == float("inf") and bad["n_loops"] == 3.0
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("line", [b'{"step": 4, "seco', b"{}", b"5", b'{"step": "4"}', b'{"step": 4, "a": "\xff"}', b"[" * 10**5])
def test_a_damaged_line_names_file_and_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2, "seconds": 1.5}\n' + line + b'\n{"step": 6, "seconds": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: .*delete the line or the file"):
        MetricsLog(path, 6, every=2)

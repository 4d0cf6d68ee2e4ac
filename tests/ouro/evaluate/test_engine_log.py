"""The reason of a failed engine is what failed first, not the last process to notice."""

from looped_lib.ouro.evaluate.engine_log import root_cause

LOG = """\
INFO 11-27 10:00:00 [utils.py:1] starting
(EngineCore pid=12) ERROR 11-27 10:00:01 [core.py:9] EngineCore failed to start.
(EngineCore pid=12) ERROR 11-27 10:00:01 [core.py:9] Traceback (most recent call last):
(EngineCore pid=12) ERROR 11-27 10:00:01 [core.py:9]   File "core.py", line 9, in run
(EngineCore pid=12) ERROR 11-27 10:00:01 [core.py:9]     load()
(EngineCore pid=12) ERROR 11-27 10:00:01 [core.py:9] ValueError: weights are missing: lm_head
(EngineCore pid=12) Traceback (most recent call last):
(EngineCore pid=12) RuntimeError: died
Traceback (most recent call last):
  File "llm.py", line 3, in start
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_first_error_of_the_log_is_the_reason(tmp_path):
    (tmp_path / "log.txt").write_text(LOG)
    assert root_cause(tmp_path / "log.txt") == "ValueError: weights are missing: lm_head"
    with open(tmp_path / "log.txt", "a") as log:
        log.write("INFO another start\nTraceback (most recent call last):\n  at it\ntorch.OutOfMemoryError: no room\n")
    assert root_cause(tmp_path / "log.txt", len(LOG)) == "torch.OutOfMemoryError: no room"


def test_a_log_without_an_error_has_no_reason(tmp_path):
    (tmp_path / "log.txt").write_text("INFO: all well\n")
    assert root_cause(tmp_path / "log.txt") is None and root_cause(tmp_path / "none.txt") is None

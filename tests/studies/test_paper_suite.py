"""The paper's runs by one command: their order, a sitting from a plain copy with few packages, and what is left for the next."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from looped_lib.core.files import read_json
from looped_lib.core.project import find_root
from looped_lib.report.evidence import Evidence
from looped_lib.runs.archive import unpack
from looped_lib.studies.paper import base
from looped_lib.studies.paper_suite import Machine, finished, main, make, suite

# What a machine with a GPU may lack; the command does not import them, nor do the processes that it starts.
MISSING = """
from importlib.machinery import PathFinder
names = set("plotly papermill nbformat nbconvert IPython ipywidgets anywidget jupyter_client datasets lm_eval yaml rich "
            "joblib sklearn psutil threadpoolctl vllm peft trl accelerate tensorboard kaleido beartype pytest".split())
found = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, *where: None if name.split(".")[0] in names else found(name, *where))
"""


def test_the_most_telling_runs_come_first_and_none_twice():
    runs = suite()
    names = list(runs)
    assert names[:2] == ["stars/public_code-seed0", "stars/random-seed0"]
    assert len({str(c) for c in runs.values()}) == len(runs) > 100
    first = {name: i for i, name in reversed(list(enumerate(name.rpartition("-seed")[0] for name in names)))}
    order = (
        "stars/random",
        "norms/pre_norm-LayerNorm",
        *(f"random_loops/{v}-sandwich_branch" for v in ("l2", "prelude", "coda")),
    )
    assert sorted(order, key=first.get) == list(order)
    assert all(c.training.steps == 10_000 and c.training.grad_clip == 0 for c in runs.values())
    seeds = [c.seed for name, c in runs.items() if name.startswith("stars/public_code")]
    assert seeds == [0, 1, 2]


def test_a_sitting_needs_a_copy_of_the_tree_and_few_packages(tmp_path):
    root = find_root()
    shutil.copytree(root / "looped_lib", tmp_path / "copy" / "looped_lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path / "copy")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(MISSING)
    command = [sys.executable, "-m", "looped_lib", "paper", "--size", "smoke", "--only", "stars/random-seed0"]
    command += ["--minutes", "9", "--max-depth", "12", "--archive", "../results.tar.gz"]
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path / "copy", env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and "1 done" in done.stdout, done.stdout + done.stderr
    written = unpack(tmp_path / "results.tar.gz", tmp_path)
    assert {p.name for p in written} == {"metrics.jsonl", "result.json"}
    config = suite("smoke")["stars/random-seed0"]
    (run,) = Evidence(tmp_path / "runs").of(config).values()
    assert max(run.accuracy) == 12 and len(run.lenient) == 13
    # Another sitting, on a machine that has the records only, finds nothing to do.
    assert finished("stars/random-seed0", tmp_path / "runs" / "paper_smoke")


def test_a_failed_run_says_why_and_is_left_until_it_is_retried(tmp_path, capfd):
    good = base("smoke")
    runs = {"x/bad": replace(good, training=replace(good.training, lr=1e30)), "x/done": good}
    (tmp_path / "x" / "done").mkdir(parents=True)
    (tmp_path / "x" / "done" / "result.json").write_text("{}")
    machine, later = Machine("fp32", False, 1), time.monotonic() + 500
    assert make(runs, tmp_path, machine, later, 4) == {"x/bad": "failed", "x/done": "done"}
    assert "x/bad: failed: FloatingPointError: the loss is nan" in capfd.readouterr().out
    assert "FloatingPointError" in read_json(tmp_path / "x" / "bad" / "failed.json")["error"]
    assert make(runs, tmp_path, machine, later, 4)["x/bad"] == "failed" and not capfd.readouterr().out  # nothing was begun
    assert make(runs, tmp_path, machine, 0.0, 4, retry=True)["x/bad"] == "waiting"  # the time is up


def test_how_a_run_is_computed_is_not_what_it_is(tmp_path):
    config = base("paper")
    fast = Machine("bf16", True, 4).of(config)
    assert (fast.training.precision, fast.training.compile) == ("bf16", True)
    assert replace(fast, training=config.training) == config
    here = Machine.here(None, 0, False, config)
    assert here.jobs >= 1


def test_a_name_that_no_run_has_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "strs"])
    assert "--only strs: no run has this in its name" in capsys.readouterr().err

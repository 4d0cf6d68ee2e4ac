"""What is recorded of a study: small files of finished runs, by the same path, with no machine's paths in them."""

import pytest

from looped_lib.config import to_dict
from looped_lib.core.files import read_json, write_json
from looped_lib.report.evidence import Evidence
from looped_lib.runs.record import LARGEST, record
from looped_lib.studies.sizes import base


@pytest.fixture
def study(tmp_path):
    root = tmp_path.resolve()
    for name, done in (("seed=0", True), ("seed=1", False)):
        run = root / "runs" / "norms" / "cpu" / name
        config = to_dict(base("smoke"))
        config["data"] |= {"train_file": f"{root}/data/a.jsonl", "test_file": f"{root}/data/b.jsonl"}
        columns = {"depths": [0, 4], "accuracy": [0, 1], "state_norm": [1, 1], "residual": [None, 0.1]}
        write_json(run / "v-seed0" / "config.json", config)
        write_json(run / "v-seed0" / "result.json", columns | {"config": config, "seconds": {"train": 1.0}})
        for other in ("notebook.ipynb", "v-seed0/checkpoints/step_1/weights.safetensors", "v-seed0/metrics.jsonl"):
            (run / other).parent.mkdir(parents=True, exist_ok=True)
            (run / other).write_text('{"step": 1, "ce": 0.5}\n')
        if done:
            write_json(run / "sweep.json", {"notebook": "n", "parameters": {}, "seconds": 1.0})
    return root / "runs" / "norms" / "cpu"


def test_small_files_of_finished_runs_by_the_same_path(study):
    root = study.parents[2]
    written = record(study, root)
    names = {path.relative_to(root / "runs" / "recorded" / "norms" / "cpu").as_posix() for path in written}
    assert names == {"seed=0/sweep.json", *(f"seed=0/v-seed0/{n}" for n in ("config.json", "metrics.jsonl", "result.json"))}
    assert set(written) == {p for p in (root / "runs" / "recorded").rglob("*") if p.is_file()}
    recorded = read_json(root / "runs" / "recorded" / "norms" / "cpu" / "seed=0" / "v-seed0" / "config.json")
    assert recorded["data"]["train_file"] == "data/a.jsonl"
    assert len(Evidence(root / "runs" / "recorded")) == 1
    assert record(study, root) == written  # again, and nothing else


def test_what_cannot_be_recorded(study):
    root = study.parents[2]
    with pytest.raises(ValueError, match="is no study's folder: give one under .*runs"):
        record(root / "data", root)
    with pytest.raises(FileNotFoundError, match="no finished run of a study"):
        record(study / "seed=1", root)
    write_json(study / "seed=0" / "sweep.json", {"notebook": "n", "parameters": {"preset": "smoke"}, "seconds": 1.0})
    with pytest.raises(ValueError, match="seed=0 is of the size smoke, which learns nothing"):
        record(study, root)
    write_json(study / "seed=0" / "sweep.json", {"notebook": "n", "parameters": {"preset": "cpu"}, "seconds": 1.0})
    (study / "seed=0" / "v-seed0" / "metrics.jsonl").write_text(" " * (LARGEST + 1))
    with pytest.raises(ValueError, match="metrics.jsonl has 10 MiB: more than 10 are not recorded"):
        record(study, root)
    assert not (root / "runs" / "recorded").exists()

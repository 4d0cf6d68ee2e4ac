"""What is recorded of a study: two files a run under plain names, which say all that its folder says, and speak of no machine."""

import pytest

from looped_lib.config import to_dict
from looped_lib.core.files import read_json, write_json
from looped_lib.report.evidence import Evidence
from looped_lib.runs.experiment import run_experiment
from looped_lib.runs.folders import load_metrics, load_runs, read_run
from looped_lib.runs.record import LARGEST, record
from looped_lib.runs.results import write_result
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


def test_two_files_of_each_finished_run_under_plain_names(study):
    root = study.parents[2]
    records = root / "runs" / "recorded"
    written = record(study, root)
    assert written == [records / "norms" / "cpu" / "v-seed0" / name for name in ("result.json", "metrics.jsonl")]
    assert set(written) == {p for p in records.rglob("*") if p.is_file()}
    result = read_json(written[0])
    assert result["kind"] == "experiment" and result["config"]["data"]["train_file"] == "data/a.jsonl"
    assert result["sweep"] == {"notebook": "n", "parameters": {}, "seconds": 1.0}
    assert len(Evidence(records)) == 1
    assert record(study, root) == written  # again, and nothing else


def test_a_record_says_all_that_the_folder_of_a_fresh_run_says(tmp_path):
    study, records = tmp_path / "runs" / "seeds" / "cpu", tmp_path / "runs" / "recorded" / "seeds" / "cpu"
    for seed in (0, 1):
        for name in ("fixed", "stars"):
            run_experiment(base("smoke", seed), study / f"seed={seed}" / name, max_depth=3, progress=False)
        write_result(study / f"seed={seed}", "experiments", {})
        write_json(study / f"seed={seed}" / "sweep.json", {"notebook": "n", "parameters": {"preset": "cpu"}})
    digits = {"depths": [0, 1], "accuracy": {"2": [0.0, 0.5]}}
    write_json(study / "seed=0" / "fixed" / "digits.json", digits)
    record(study, tmp_path)
    assert sorted(p.relative_to(records).as_posix() for p in records.rglob("result.json")) == [
        f"seed{seed}/{name}/result.json" for seed in (0, 1) for name in ("fixed", "stars")
    ]
    for load in (load_runs, load_metrics):
        fresh, recorded = load(study), load(records)
        assert recorded.study.tolist() == fresh.study.str.replace("=", "").tolist()
        assert recorded.drop(columns="study").equals(fresh.drop(columns="study")) and len(recorded) > 0
    fresh, recorded = (read_run(folder / "fixed") for folder in (study / "seed=0", records / "seed0"))
    assert recorded.config == fresh.config and recorded.digits == fresh.digits == {2: {0: 0.0, 1: 0.5}}
    assert recorded.metrics().equals(fresh.metrics())


def test_two_runs_are_not_recorded_as_one(study):
    write_json(study / "seed=1" / "sweep.json", {"notebook": "n", "parameters": {}})
    with pytest.raises(ValueError, match="two runs in .*cpu would be recorded as .*v-seed0: name their folders differently"):
        record(study, study.parents[2])


def test_the_result_of_a_notebook_is_recorded_if_it_says_more(study):
    run = study / "seed=0"
    write_result(run, "dynamics", {"loops": [1], "gains": {}, "runs": {}})
    records = study.parents[2] / "runs" / "recorded" / "norms" / "cpu"
    assert records / "seed0" / "result.json" in record(study, study.parents[2])
    assert read_json(records / "seed0" / "result.json")["kind"] == "dynamics"


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

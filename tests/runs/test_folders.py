"""Run folders: atomic JSON, one tidy table over all runs, damaged folders named and left out."""

import hashlib
import json
import re
import shutil

import nbformat
import pytest

from looped_lib.core import files, project
from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import find_root
from looped_lib.runs import folders
from looped_lib.runs.experiment import run_experiment
from looped_lib.runs.results import KINDS, find_results, kind_of, write_result
from looped_lib.studies.paper import base, norm_study
from looped_lib.studies.study import load


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, config in norm_study("smoke", "all", "RMSNorm").items():
        run_experiment(config, root / "norms" / name, max_depth=3, progress=False)
    return root


def test_all_runs_in_one_table(root):
    table = folders.load_runs(root)
    assert len(table) == 4 * 4 and set(table.study) == {"norms"}
    assert set(table["model.norm_placement"]) == {"pre_norm", "post_norm", "sandwich_branch", "sandwich_dual"}
    one = table[table.run == "pre_norm-RMSNorm-seed0"]
    assert one.depth.tolist() == [0, 1, 2, 3] and one.accuracy.between(0, 1).all() and one["loops.kind"].eq("FixedLoops").all()


def test_training_curves_in_one_table(root):
    table = folders.load_metrics(root)
    assert set(table.groupby("run").step.apply(list).map(tuple)) == {(2, 4, 6)}
    assert (table.ce > 0).all()


def test_damaged_and_foreign_folders(root, tmp_path):
    for name in ("good", "torn"):
        run_experiment(base("smoke"), tmp_path / "study" / name, max_depth=1, progress=False)
    (tmp_path / "study" / "notes").mkdir()
    (tmp_path / "study" / "result.json").write_text("{}")  # a notebook's result, not a run's
    torn = tmp_path / "study" / "torn" / "result.json"
    torn.write_text(torn.read_text()[:100])
    with pytest.warns(UserWarning, match="left out .*torn"):
        table = folders.load_runs(tmp_path)
    assert set(table.run) == {"good"}


def test_a_run_is_named_by_its_study_and_name_wherever_it_lies(root, tmp_path):
    for sweep in ("one", "two"):
        shutil.copytree(root / "norms", tmp_path / sweep / "seed=0")
    table = folders.load_runs(tmp_path)
    assert set(table.study) == {"one/seed=0", "two/seed=0"} and not table.duplicated(["study", "run", "depth"]).any()
    assert set(folders.load_runs(tmp_path / "one").study) == {"seed=0"}
    for folder in (root / "norms", root / "norms" / "pre_norm-RMSNorm-seed0"):
        assert set(folders.load_runs(folder).study) == {"norms"}


@pytest.mark.parametrize("contents", ["[]", "{}", '{"depths": [0, 1], "config": []}', "nothing"])
def test_json_of_another_shape_is_left_out_with_a_warning(root, tmp_path, contents):
    run = tmp_path / "study" / "odd"
    shutil.copytree(root / "norms" / "pre_norm-RMSNorm-seed0", run)
    (run / "result.json").write_text(contents)
    with pytest.warns(UserWarning, match="left out .*odd"):
        assert folders.load_runs(tmp_path).empty
    (run / "config.json").write_text("[]")
    with pytest.warns(UserWarning, match="left out .*odd"):
        assert folders.load_metrics(tmp_path).empty


DIGESTS = {
    "beyond": "13b860a35135",
    "four_digits": "30bf888f3b07",
    "norms": "4bbd20a3f4b2",
    "random_loops": "2d11985e0e58",
    "recipes": "e5be18541e00",
    "seeds": "dc53383ecea6",
    "stars": "efca7a544b80",
    "tour": "696693f477bd",
}  # of the tables as they were when each run had a folder of four or five files


@pytest.mark.parametrize("study", DIGESTS)
def test_the_numbers_of_the_records_stay(study):
    table = folders.load_runs(find_root() / "runs" / "recorded" / study)
    rows = table[["run", "seed", "depth", *folders.PER_DEPTH]].sort_values(["run", "seed", "depth"])
    assert hashlib.sha256(repr(rows.to_numpy().tolist()).encode()).hexdigest()[:12] == DIGESTS[study]


def test_a_run_has_at_most_two_files_of_plain_names_in_the_records():
    records = find_root() / "runs" / "recorded"
    for path in (p for p in records.rglob("*") if p.is_file() and "report" not in p.parts and p.parent != records):
        assert path.name in ("result.json", "metrics.jsonl") and re.fullmatch(r"[\w./-]+", path.relative_to(records).as_posix())
    for path in records.rglob("result.json"):
        assert read_json(path)["kind"] in KINDS


OLDER = {
    "dynamics": {"depths": [0], "loops": [1], "gains": {}, "runs": {}},
    "evaluation": {"table": [], "config": {}},
    "finetunings": {"depths": [4], "accuracy": {"stars-seed0": [1.0]}, "problems": 5, "preset": "cpu", "seed": 0},
    "experiments": {"depths": [0], "accuracy": {"a": [1.0]}},
}


def test_results_of_older_checkouts_are_told_by_their_fields_and_by_what_lies_beside_them(root, tmp_path):
    for kind, values in OLDER.items():
        write_json(tmp_path / kind / "result.json", values)
    for name, config in (("run", "config.json"), ("ouro", "finetune.json")):
        write_json(tmp_path / name / config, {})
        write_json(tmp_path / name / "result.json", {})
    found = {path.parent.name: kind_of(path, result) for path, result in find_results(tmp_path)}
    assert found == {kind: kind for kind in OLDER} | {"experiments": "", "run": "experiment", "ouro": "finetuning"}
    ((_, result),) = find_results(tmp_path, "finetunings")
    assert result["modes"] == {"stars-seed0": "stars"}


def test_a_result_is_of_a_known_kind(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of experiment, .*, got 'other'"):
        write_result(tmp_path, "other", {})


def test_no_runs_is_an_empty_table(tmp_path):
    assert folders.load_runs(tmp_path).empty


def test_write_json_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "new" / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        files.write_json(path, {"a": float("nan")})
    monkeypatch.setattr(files.os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    path.write_text("{")
    with pytest.raises(ValueError, match="x.json: not JSON"):
        files.read_json(path)


def test_root_is_found_from_anywhere(tmp_path, monkeypatch):
    root = find_root()
    for folder in (root / "looped_lib", tmp_path):
        monkeypatch.chdir(folder)
        assert find_root() == root


def test_provenance_names_versions_and_no_machine():
    p = folders.provenance()
    assert p["versions"]["torch"] and "/" not in json.dumps(p["device"])


def test_without_git_there_is_no_commit_and_all_else(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    p = folders.provenance()
    assert p["commit"] is None and p["changed_files"] is None and p["python"]


def test_installed_without_a_checkout_runs_go_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "__file__", str(tmp_path / "lib" / "looped_lib" / "core" / "project.py"))
    monkeypatch.chdir(tmp_path)
    assert project.checkout() is None and project.runs_folder() == tmp_path / "runs"
    with pytest.raises(FileNotFoundError, match="this needs the project's own files"):
        find_root()
    study = load(write_study(tmp_path))
    assert study.notebook == tmp_path / "mine.ipynb" and study.configs(next(iter(study.runs("cpu").values()))) == {}
    assert folders.provenance()["commit"] is None


def write_study(folder):
    parameters = 'preset: str = "cpu"\na: int = 0\nseed: int = 0\nout: str = ""'
    cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), folder / "mine.ipynb")
    (folder / "mine.yaml").write_text("about: a\nnotebook: mine.ipynb\ngrid: {a: [1, 2]}\n")
    return folder / "mine.yaml"

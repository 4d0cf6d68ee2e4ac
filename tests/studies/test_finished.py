"""A finished run is skipped only if it is what its study asks for; what was recorded earlier still is."""

from dataclasses import replace

import pytest

from looped_lib.config import ExperimentConfig, from_dict, to_dict
from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import find_root
from looped_lib.runs.folders import portable
from looped_lib.runs.results import find_results
from looped_lib.studies.finished import check_finished
from looped_lib.studies.study import Study, StudyError, load, shipped

RECORDED = find_root() / "runs" / "recorded"


@pytest.fixture
def done(tmp_path):
    """A study in the paper's size, whose data are files, its one run's parameters, and that run, finished."""
    notebook = find_root() / "notebooks" / "01_norm_placement.ipynb"
    study = Study(name="s", about="", notebook=notebook, set={"norm_placement": "pre_norm"})
    parameters = study.runs("paper")["seed=0"]
    write_json(tmp_path / "sweep.json", {"notebook": notebook.name, "parameters": parameters, "seconds": 1.0})
    for name, config in study.configs(parameters).items():
        elsewhere = {key: f"/elsewhere/{getattr(config.data, key).rpartition('/')[2]}" for key in ("train_file", "test_file")}
        write_json(tmp_path / name / "config.json", to_dict(replace(config, data=replace(config.data, **elsewhere))))
    return study, tmp_path, parameters


def test_the_same_configs_pass_wherever_their_data_lie(done):
    check_finished(*done)


def test_a_run_is_known_by_its_config_where_its_name_has_changed(done):
    _, folder, _ = done
    (run,) = (path.parent for path in folder.glob("*/config.json"))
    run.rename(run.with_name("of_old"))
    check_finished(*done)
    config = read_json(folder / "of_old" / "config.json")
    write_json(folder / "of_old" / "config.json", config | {"training": config["training"] | {"steps": 7}})
    with pytest.raises(StudyError, match="config.json is missing"):
        check_finished(*done)


def test_other_configs_are_refused_by_the_field_that_differs(done):
    study, folder, parameters = done
    (path,) = folder.glob("*/config.json")
    config = read_json(path)
    write_json(path, config | {"training": config["training"] | {"steps": 7}})
    with pytest.raises(StudyError, match="pre_norm-LayerNorm-seed0 was run with training.steps 7, now 10000: delete it, or name"):
        check_finished(study, folder, parameters)
    write_json(path, config | {"data": config["data"] | {"test_file": "/elsewhere/other.jsonl"}})
    with pytest.raises(StudyError, match="data.test_file 'other.jsonl', now 'test_4digit.jsonl'"):
        check_finished(study, folder, parameters)
    write_json(path, config | {"colour": "red"})
    with pytest.raises(StudyError, match="config.json: ExperimentConfig has no field colour.*; delete .* to run it anew"):
        check_finished(study, folder, parameters)
    path.unlink()
    with pytest.raises(StudyError, match="config.json is missing.*; delete .* to run it anew"):
        check_finished(study, folder, parameters)


@pytest.mark.parametrize("name", [name for name in shipped() if (RECORDED / name).is_dir()])
def test_recorded_runs_are_what_their_studies_ask_for(name):
    study, made = load(name), [r for _, r in find_results(RECORDED / name) if "sweep" in r]
    assert len(made) >= 9
    for result in made:
        parameters = result["sweep"]["parameters"]
        assert result["sweep"]["notebook"] == study.notebook.name and parameters in study.runs(parameters["preset"]).values()
        config = from_dict(ExperimentConfig, result["config"])  # a field younger than the record has its default
        assert portable(config) in map(portable, study.configs(parameters).values())  # by its config: names have changed

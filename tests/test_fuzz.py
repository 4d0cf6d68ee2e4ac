"""Damaged input of every kind that users of the small model hand in: each is refused in one clear line, or rightly accepted, and
changes nothing (see `fuzzing`). Ouro's are in `ouro/test_fuzz_ouro.py`.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import Input, assert_well_read, copied, says_the_same

from looped_lib.config import ExperimentConfig, from_dict, to_dict
from looped_lib.core.files import read_json
from looped_lib.core.project import find_root
from looped_lib.ouro.evaluate.cells import EvaluationConfig
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.runs.experiment import run_experiment
from looped_lib.runs.folders import load_metrics, load_runs, read_config
from looped_lib.studies.sizes import base
from looped_lib.studies.study import load
from looped_lib.tasks.addition import generate_operands as operands
from looped_lib.tasks.addition import load_jsonl, save_jsonl
from looped_lib.training.folder import newest
from looped_lib.training.trainer import load_model
from looped_lib.widgets.explorer import find_runs, open_run

CHECKPOINT = "checkpoints/step_00000006"


def kinds_agree(read: Any, default: Any) -> bool:
    """Whether each field of a config holds the kind of value that its default is."""
    if isinstance(default, dict) and default and "kind" not in default:
        return all(kinds_agree(read[k], v) for k, v in default.items() if k in read)
    if isinstance(default, bool) or isinstance(default, str):
        return type(read) is type(default)
    if isinstance(default, int | float):
        return type(read) in ((int,) if isinstance(default, int) else (int, float))
    return isinstance(read, type(default))


def config(cls: type, example: Any = None) -> Input:
    """A config in a JSON file."""
    example = cls() if example is None else example

    def write(folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps(to_dict(example)))
        return folder / "config.json"

    def right(path: Path, read: Any) -> bool:
        return says_the_same(json.loads(path.read_bytes()), to_dict(read)) and kinds_agree(to_dict(read), to_dict(cls()))

    return Input(write, lambda path: from_dict(cls, read_json(path), str(path)), right)


def addition_lines(path: Path, problems: Any) -> bool:
    rows = [json.loads(line) for line in path.read_bytes().decode().split("\n") if line.strip()]
    texts = [f"{r['num1']}+{r['num2']}= {str(r['num1'] + r['num2'])[::-1]}§" for r in rows]
    return problems.texts() == texts and all(r["num1"] + r["num2"] == r["answer"] == r.get("sum", r["answer"]) for r in rows)


def write_addition(folder: Path) -> Path:
    save_jsonl(folder / "data.jsonl", *operands(2, 5, 0))
    return folder / "data.jsonl"


def write_study(folder: Path) -> Path:
    text = "about: a\nnotebook: 01_norm_placement\nset: {max_depth: 12}\n"
    text += "grid: {norm_placement: [pre_norm, post_norm]}\nseeds: [0, 1]\n"
    (folder / "s.yaml").write_text(text + "sizes: {smoke: {seeds: [0], set: {max_depth: 9}}}\n")
    return folder / "s.yaml"


def read_study(path: Path) -> Any:
    study = load(path)
    study.check_configs("smoke")
    return study


def study_says(path: Path, study: Any) -> bool:
    said = yaml.safe_load(path.read_bytes().decode())
    return all(said.get(name, getattr(study, name)) == getattr(study, name) for name in ("about", "set")) and list(
        said.get("seeds", study.seeds)
    ) == list(study.seeds)


def shallow(path: Path, table: Any) -> bool:
    """The table says what the file says."""
    said = json.loads(path.read_bytes())
    return table.depth.tolist() == said["depths"] and table.accuracy.tolist() == said["accuracy"]


def steps_are(path: Path, table: Any) -> bool:
    """Each row of the table is a whole line of the file, number by number."""
    lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return len(table) == len(lines) and all(
        same(table[name][i], said) for i, line in enumerate(lines) for name, said in line.items()
    )


def same(read: Any, said: Any) -> bool:
    return read == said or all(isinstance(x, float) and math.isnan(x) for x in (read, said))


def open_all(path: Path) -> Any:
    return [open_run(folder, name) for name, folder in find_runs(path.parent).items()]


def opened(path: Path, runs: Any) -> bool:
    """The one run, with what its result says."""
    (run,), said = runs, json.loads(path.read_bytes())
    return says_the_same([said["depths"], said["accuracy"]], [run.depths.tolist(), run.accuracy.tolist()])


def where_it_stood(path: Path, found: Any) -> bool:
    said, (checkpoint, config) = json.loads(path.read_bytes()), found
    whole = all(type(said[name]) is int and said[name] > 0 for name in ("step", "world_size", "threads") if name in said)
    return whole and checkpoint.step == said["step"] == 6 and says_the_same(said["config"], to_dict(config))


def of_the_run(name: str, read: Callable[[Path], Any], right: Callable[[Path, Any], bool]) -> Callable[[Path], Input]:
    return lambda run: copied(run, name, read, right)


INPUTS = {
    "experiment": config(ExperimentConfig, base("smoke")),
    "fine-tuning": config(FinetuneConfig),
    "evaluation": config(EvaluationConfig),
    "addition lines": Input(write_addition, load_jsonl, addition_lines),
    "study": Input(write_study, read_study, study_says),
}
OF_A_RUN = {
    "config": of_the_run("config.json", lambda p: read_config(p.parent), lambda p, c: says_the_same(read_json(p), to_dict(c))),
    "result": of_the_run("result.json", lambda p: load_runs(p.parent), shallow),
    "metrics": of_the_run("metrics.jsonl", lambda p: load_metrics(p.parent), steps_are),
    "explorer": of_the_run("result.json", open_all, opened),
    "state": of_the_run(f"{CHECKPOINT}/state.json", lambda p: newest(p.parents[2]), where_it_stood),
    "weights": of_the_run(f"{CHECKPOINT}/model.safetensors", lambda p: load_model(p.parents[2]), lambda p, m: False),
    "moments": of_the_run(f"{CHECKPOINT}/training.safetensors", lambda p: load_model(p.parents[2]), lambda p, m: False),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of the smallest size."""
    folder = tmp_path_factory.mktemp("run")
    run_experiment(base("smoke"), folder, max_depth=4, progress=False)
    return folder


@pytest.mark.parametrize("name", INPUTS)
def test_damaged_input_is_refused_in_one_line_or_rightly_accepted(name, tmp_path):
    assert_well_read(name, INPUTS[name], tmp_path)


@pytest.mark.parametrize("name", OF_A_RUN)
def test_a_damaged_file_of_a_run_is_refused_in_one_line_or_rightly_accepted(name, run, tmp_path):
    assert_well_read(name, OF_A_RUN[name](run), tmp_path)


def test_the_projects_own_files_are_accepted():
    assert len(load_jsonl(find_root() / "data" / "test_4digit.jsonl", limit=10)) == 10

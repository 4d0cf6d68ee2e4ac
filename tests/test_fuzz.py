"""Damaged input of every kind that users hand in: each is refused in one clear line, or rightly accepted, and changes nothing.

A good input is damaged at random, in its bytes or in its values, and read. Counted are five outcomes; the last three must not be:

    refused     one line that the commands would print (see `core.errors`)
    accepted    what was read is what the file says, and of the kinds that are declared
    raw         another exception
    wrong       accepted, though the file says something else, or not what is declared
    destroyed   a file was changed or lost

FUZZ=1000 pytest tests/test_fuzz.py damages each input a thousand times.
"""

import copy
import hashlib
import json
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from looped_lib.config import ExperimentConfig, from_dict, to_dict
from looped_lib.core.errors import mendable
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
from looped_lib.training.trainer import load_model
from looped_lib.widgets.explorer import find_runs, open_run

TIMES = int(os.environ.get("FUZZ", 40))  # each input is damaged
NASTY = (
    *(None, True, False, 0, 1, -1, 3, 0.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**30, 10**400),
    *("", "x", "0", "true", "../../x", "a\0b", "\ud800", "<img src=x onerror=alert(1)>", "x" * 10_000),
    *([], [0], [[]], ["x"], [None], {}, {"x": 1}, {"": None}),
)


@dataclass
class Input:
    """A kind of input: a good one, how it is read, and whether what was read is what the file says."""

    write: Callable[[Path], Path]
    """Writes a good one into a folder; returns the file to damage."""
    read: Callable[[Path], Any]
    """Reads it, by that file."""
    right: Callable[[Path, Any], bool]
    """Whether what was read of that file is what it says."""


def damaged_bytes(blob: bytes, rng: random.Random) -> bytes:
    at, way = rng.randrange(len(blob) + 1), rng.randrange(6)
    if way == 0:
        return blob[:at]
    if way == 1:
        return blob[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + blob[at:]
    if way == 2:
        return blob[:at] + bytes([rng.randrange(256)]) + blob[at + 1 :]
    if way == 3:
        return blob[:at] + blob[at + rng.randrange(1, 20) :]
    if way == 4:
        return (
            blob[:at]
            + rng.choice([b"[" * 5000, b"9" * 5000, b"\n", b"\xff\xfe", b'"', b"{}", b"null", b"&a ", b"*a"])
            + blob[at:]
        )
    return rng.choice([b"", b"null", b"5", b"[]", b"{}", b'"x"', b"{" * 4000, b"\n\n"])


def places(values: Any, where: tuple = ()) -> list[tuple]:
    """The way to each value within nested mappings and lists."""
    inside = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [p for key, value in inside for p in ((*where, key), *places(value, (*where, key)))]


def damaged_values(values: Any, rng: random.Random) -> Any:
    values = copy.deepcopy(values)
    *way, last = rng.choice(places(values))
    inner = values
    for key in way:
        inner = inner[key]
    match rng.randrange(4):
        case 0:
            del inner[last]
        case 1 if isinstance(inner, dict):
            inner[rng.choice(["x", "", "kind", "seed "])] = rng.choice(NASTY)
        case _:
            inner[last] = rng.choice(NASTY)
    return values


def damage(path: Path, rng: random.Random) -> None:
    """One damage to a file: to its bytes, or, if it is JSON or YAML, to a value."""
    blob, text = path.read_bytes(), path.suffix in (".json", ".yaml", ".jsonl")
    if not text or rng.random() < 0.4:
        path.write_bytes(damaged_bytes(blob, rng))
    elif path.suffix == ".yaml":
        values = damaged_values(yaml.safe_load(blob), rng)
        path.write_text(yaml.safe_dump(values, allow_unicode=False) if "\ud800" not in repr(values) else "about: [", "utf-8")
    elif path.suffix == ".jsonl":
        lines = blob.decode().splitlines()
        i = rng.randrange(len(lines))
        lines[i] = json.dumps(damaged_values(json.loads(lines[i]), rng))
        path.write_text("\n".join(lines) + "\n", "utf-8")
    else:
        path.write_text(json.dumps(damaged_values(json.loads(blob), rng)), "utf-8")


def says_the_same(said: Any, read: Any) -> bool:
    """Whether everything in `said` stands in `read`, of the same kind (a whole number may stand for another number)."""
    if isinstance(said, dict):
        return isinstance(read, dict) and all(k in read and says_the_same(v, read[k]) for k, v in said.items())
    if isinstance(said, list):
        return isinstance(read, list) and len(said) == len(read) and all(map(says_the_same, said, read))
    return said == read and isinstance(said, bool) == isinstance(read, bool)


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


def in_run(name: str, read: Callable[[Path], Any], right: Callable[[Path, Any], bool]) -> Input:
    """A file of the run that is copied into the folder."""
    return Input(lambda folder: folder / name, read, right)


def shallow(path: Path, table: Any) -> bool:
    """The table says what the file says."""
    said = json.loads(path.read_bytes())
    return table.depth.tolist() == said["depths"] and table.accuracy.tolist() == said["accuracy"]


def steps_are(path: Path, table: Any) -> bool:
    return table.empty or table.step.is_monotonic_increasing


def open_all(path: Path) -> Any:
    return [open_run(folder, name) for name, folder in find_runs(path.parent).items()]


INPUTS = {
    "experiment": config(ExperimentConfig, base("smoke")),
    "fine-tuning": config(FinetuneConfig),
    "evaluation": config(EvaluationConfig),
    "addition lines": Input(write_addition, load_jsonl, addition_lines),
    "study": Input(write_study, read_study, study_says),
    "run: config": in_run("config.json", lambda p: read_config(p.parent), lambda p, c: says_the_same(read_json(p), to_dict(c))),
    "run: result": in_run("result.json", lambda p: load_runs(p.parent), shallow),
    "run: metrics": in_run("metrics.jsonl", lambda p: load_metrics(p.parent), steps_are),
    "run: explorer": in_run("result.json", open_all, lambda path, runs: True),
    "run: weights": in_run("checkpoints/step_00000006/model.safetensors", lambda p: load_model(p.parents[2]), lambda p, m: False),
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A finished run of the smallest size."""
    folder = tmp_path_factory.mktemp("run")
    run_experiment(base("smoke"), folder, max_depth=4, progress=False)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def outcome(name: str, folder: Path, rng: random.Random) -> tuple[str, str]:
    """What became of one damaged input, and what was said."""
    made = INPUTS[name]
    path = made.write(folder)
    whole = path.read_bytes()
    damage(path, rng)
    if path.read_bytes() == whole:
        return "accepted", "not damaged"
    before = digests(folder)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            read = made.read(path)
    except Exception as e:
        line = mendable(e)
        found = ("raw", repr(e)) if line is None or not line or "\n" in line else ("refused", line)
    else:
        left_out = [str(w.message) for w in said if str(w.message).startswith("left out ")]
        if left_out:
            found = "refused", left_out[0]
        else:
            found = ("accepted", "") if made.right(path, read) else ("wrong", repr(path.read_bytes()[:300]))
    return found if digests(folder) == before else ("destroyed", str(folder))


@pytest.mark.parametrize("name", INPUTS)
def test_damaged_input_is_refused_in_one_line_or_rightly_accepted(name, run_folder, tmp_path):
    counts, bad = Counter(), []
    copied = {p.relative_to(run_folder): p.read_bytes() for p in run_folder.rglob("*") if p.is_file()}
    for seed in range(TIMES):
        if name.startswith("run: "):
            for place, blob in copied.items():
                (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / place).write_bytes(blob)
        kind, said = outcome(name, tmp_path, random.Random(f"{name} {seed}"))
        counts[kind] += 1
        if kind not in ("refused", "accepted"):
            bad.append(f"{kind} (seed {seed}): {said[:300]}")
    print(f"{name}: {dict(counts)}")
    assert not bad, "\n".join(bad[:20])
    assert counts["refused"] > TIMES / 10  # the damage is real


def test_the_projects_own_files_are_accepted():
    assert len(load_jsonl(find_root() / "data" / "test_4digit.jsonl", limit=10)) == 10

"""The README's tree, commands and example are true."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from looped_lib.config import from_dict, to_dict
from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import find_root
from looped_lib.ouro.evaluate.cells import EvaluationConfig
from looped_lib.ouro.evaluate.presets import evaluation
from looped_lib.ouro.finetune.presets import pretraining, write_architecture
from looped_lib.studies.paper import base

ROOT = find_root()
TEXT = (ROOT / "README.md").read_text()


TOUR_NUMBERS = (("fixed", 4), ("fixed", 8), ("random", 8), ("random", 16))


def by_depth(path) -> dict[int, float]:
    """The accuracy of a run's result.json by loop count."""
    result = read_json(path)
    return dict(zip(result["depths"], result["accuracy"], strict=True))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


def test_the_tree_lists_every_library_file_and_nothing_else():
    tree = blocks("text")[-1]
    listed = set(re.findall(r"^  (\w+\.py|\w+/)", tree, re.M))
    there = {p.name + "/" * p.is_dir() for p in (ROOT / "looped_lib").iterdir() if p.name != "__pycache__"}
    assert listed == there
    for name in re.findall(r"^(\S+)", tree, re.M):
        assert name == "looped_lib/" or (ROOT / name).exists(), name


def test_every_notebook_is_in_the_table():
    assert set(re.findall(r"^\| `(\d\d_\w+)`", TEXT, re.M)) == {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}


def test_pictures_and_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_numbers_of_the_tour_are_the_recorded_ones():
    recorded = read_json(ROOT / "runs" / "recorded" / "tour" / "result.json")
    accuracy = {name: dict(zip(recorded["depths"], values, strict=True)) for name, values in recorded["accuracy"].items()}
    sentence = re.search(r"Trained at 4 loops.*?from 4 to 200\.", TEXT, re.S)[0]
    quoted = [float(number) for number in re.findall(r"([\d.]+) %", sentence)]
    lowest = min(100 * value for depth, value in accuracy["stars"].items() if depth >= 4)
    there = [*(100 * accuracy[name][depth] for name, depth in TOUR_NUMBERS), lowest]
    assert quoted == pytest.approx(there, abs=0.5)


def test_the_numbers_over_seeds_are_the_recorded_ones():
    said = " ".join(re.search(r"Over \[five seeds\].*?at 200\.", TEXT, re.S)[0].split())
    quoted = [float(number) for number in re.findall(r"([\d.]+) %", said)]
    folder = ROOT / "runs" / "recorded" / "seeds" / "cpu"
    curves = {name: [by_depth(path) for path in folder.glob(f"seed*/{name}/result.json")] for name in ("stars", "random")}
    assert {len(seeds) for seeds in curves.values()} == {5}
    lowest = min(accuracy for curve in curves["stars"] for depth, accuracy in curve.items() if depth >= 4)
    assert quoted == pytest.approx([100 * lowest, 100 * max(curve[200] for curve in curves["random"])], abs=0.05)


def test_the_numbers_of_the_dynamics_are_the_recorded_ones():
    runs = read_json(ROOT / "runs" / "recorded" / "trajectory_pca" / "result.json")["runs"]
    kinds = {name: {kind for kind, n in run["class"].items() if n} for name, run in runs.items()}
    assert kinds == {"fixed": {"drift"}, "random": {"converged"}, "stars": {"converged"}}
    assert runs["random"]["exit"]["accuracy"][-1] < 0.05  # at rest
    quoted = re.search(r"spectral radius ([\d.]+), and stopped early it needs ([\d.]+) loops", TEXT)
    assert float(quoted[1]) == pytest.approx(runs["stars"]["radius"], abs=0.005)
    exits = runs["stars"]["exit"]
    free = [loops for loops, a in zip(exits["mean_loops"], exits["accuracy"], strict=True) if a == 1]
    assert float(quoted[2]) == pytest.approx(min(free), abs=0.05)


def test_the_numbers_of_the_tiny_ouro_are_the_recorded_ones():
    solved = {}
    for path in (ROOT / "runs" / "recorded" / "ouro_finetune").glob("seed*/result.json"):
        result = read_json(path)
        for name, accuracy in result["accuracy"].items():
            solved.setdefault(result["modes"][name], []).append(dict(zip(result["depths"], accuracy, strict=True)))
    mean = {
        name: {depth: 100 * sum(s[depth] for s in seeds) / len(seeds) for depth in seeds[0]} for name, seeds in solved.items()
    }
    quoted = [float(n) for n in re.findall(r"([\d.]+) %", re.search(r"On the tiny Ouro.*?STARS \d+ %:", TEXT, re.S)[0])]
    there = [mean[name][depth] for name, depth in (("sft", 8), ("random", 8), ("stars", 8), ("random", 16), ("stars", 16))]
    assert all(len(seeds) == 3 for seeds in solved.values())
    assert 98 <= min(m[4] for m in mean.values()) + 0.5
    assert quoted[1:] == pytest.approx(there, abs=0.5)


ROWS = re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\| ([^|]*) \| (\d+) \| ([^|]*) \|$", TEXT, re.M)


@pytest.mark.parametrize("key, here, seeds, verdict", ROWS, ids=[row[0] for row in ROWS])
def test_what_was_found_is_what_is_recorded(key, here, seeds, verdict):
    claims = {row["key"]: row for row in read_json(ROOT / "runs/recorded/report/claims.json") if row["size"] == "cpu"}
    row = claims[key]
    assert (int(seeds), verdict) == (row["seeds"], row["verdict"])
    known = {*re.findall(r"\d+(?:\.\d+)?", row["measured"]), f"{row['value']:.2f}", f"{100 * row['value']:.1f}"}
    said = re.findall(r"\d+(?:\.\d+)?(?= %)|(?<=× )\d+|0\.\d+", here)
    assert said and set(said) <= known
    if key.startswith("recipe") or key.startswith("four"):  # the lowest of all seeds
        by_seed = re.search(r"lowest ([\d., ]+) % by seed", row["measured"])[1].split(", ")
        assert float(said[0]) == min(map(float, by_seed))


def test_the_table_has_what_was_refuted_too():
    assert len(ROWS) >= 12 and {"not reproduced", "undecided", "not confirmed"} <= {row[3] for row in ROWS}


def test_the_records_that_differ_are_counted():
    made = [r.get("provenance") or {} for r in map(read_json, (ROOT / "runs/recorded").rglob("result.json"))]
    numpy, changed = map(int, re.search(r"(\d+) records were made with another numpy than the pin, (\d+) with", TEXT).groups())
    others = [m for m in made if m.get("versions", {}).get("numpy") not in (None, "2.3.5")]
    assert (numpy, changed) == (len(others), sum(bool(m.get("changed_files")) for m in made))


def test_the_citation_names_the_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and {"title", "authors", "message", "version"} <= set(cited)
    assert {r["identifiers"][0]["value"] for r in cited["references"]} == {"arXiv:2605.26733", "arXiv:2510.25741"}


def test_make_targets_exist():
    targets = set(re.findall(r"`?make (\w+)", TEXT))
    assert {"tour", "test", "lab", "bench"} <= targets
    for target in targets:
        assert subprocess.run(["make", "-n", "-C", ROOT, target], capture_output=True).returncode == 0, target


COMMANDS = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture
def project(tmp_path):
    """A project folder of its own for what the commands write, with the real library and notebooks in it."""
    for name in ("looped_lib", "notebooks", "data", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    write_json(tmp_path / "CONFIG.json", to_dict(base("smoke")))
    (tmp_path / "STUDY.yaml").write_text(blocks("yaml")[0])
    write_json(tmp_path / "EVALUATION.json", to_dict(evaluation("smoke", tmp_path, depths=2, backend="transformers")))
    write_json(tmp_path / "FINETUNE.json", to_dict(pretraining("smoke", write_architecture(tmp_path / "architecture", "smoke"))))
    return tmp_path


@pytest.mark.parametrize("command", [c for c in COMMANDS if ".venv/bin/" in c])
def test_commands_run_as_written(command, project):
    before = set(project.iterdir())
    done = subprocess.run(command, shell=True, cwd=project, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "--help" in command or set(project.iterdir()) > before


def test_the_example_of_a_config_is_one():
    (example,) = blocks("json")
    assert from_dict(EvaluationConfig, json.loads(example)).data == {"gsm8k": "copies/gsm8k"}


OWN = TEXT.split("## Add your own")[1].split("\n## ")[0]
EXAMPLES = [code for code in blocks("python") if code not in OWN]


@pytest.mark.parametrize("code", [*EXAMPLES, "".join(re.findall(r"^```python\n(.*?)^```", OWN, re.M | re.S))])
def test_examples_run(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code.replace('"runs/mine', f'"{tmp_path}/mine')], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr

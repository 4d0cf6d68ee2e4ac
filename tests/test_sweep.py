"""Sweeps: the whole grid runs, a failure costs one run, finished runs are not repeated, typos are refused."""

import nbformat
import pytest

from looped_lib import sweep as module
from looped_lib.files import read_json
from looped_lib.sweep import grid, main, sweep

# Run 1 raises and run 2's kernel dies until a file `repaired` lies beside the notebook, which is the working directory.
WORK = """
import json, os, pathlib
with open("log", "a") as file: file.write(f"{a}{b} ")
broken = not pathlib.Path("repaired").exists()
if a == 1 and broken: raise RuntimeError("the reason")
if a == 2 and broken: os._exit(1)
pathlib.Path(out, "result.json").write_text(json.dumps([a, b]))
"""
RUN = "a={},b=x%2Fy".format


def write_notebook(path, parameters='a: int = 0  # which\nb: str = ""\nout: str = ""'):
    cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [cell, nbformat.v4.new_code_cell(WORK)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_root", lambda: tmp_path)
    (tmp_path / "notebooks").mkdir()
    return write_notebook(tmp_path / "notebooks" / "work.ipynb")


def test_failures_cost_one_run_and_only_they_are_repeated(notebook, tmp_path, capsys):
    command = [str(notebook), "-p", "a", "0", "1", "2", "-p", "b", "x/y", "--study", "mine"]
    runs = tmp_path / "runs" / "mine"
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "1 done, 0 finished before, 2 failed" in out and f"{RUN(1)}: RuntimeError: the reason" in out
    assert f"{RUN(2)}: DeadKernelError" in out
    assert read_json(runs / RUN(0) / "result.json") == [0, "x/y"]
    assert "the reason" in (runs / RUN(1) / "notebook.ipynb").read_text()
    assert read_json(runs / RUN(0) / "sweep.json")["parameters"] == {"a": 0, "b": "x/y"}

    (notebook.parent / "repaired").touch()
    assert main(command) == 0
    assert "2 done, 1 finished before, 0 failed" in capsys.readouterr().out
    assert [read_json(runs / RUN(a) / "result.json") for a in range(3)] == [[a, "x/y"] for a in range(3)]
    assert (notebook.parent / "log").read_text().split() == ["0x/y", "1x/y", "2x/y", "1x/y", "2x/y"]

    other = write_notebook(notebook.with_name("other.ipynb"))
    with pytest.raises(ValueError, match="finished run of work.ipynb, not of other.ipynb: choose another study"):
        sweep(other, {"a": [0], "b": ["x/y"]}, runs)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["-p", "aa", "1", "--study", "s"], "work.ipynb has no parameter aa; it has a, b, out"),
        (["-p", "out", "x", "--study", "s"], "the sweep sets it"),
        (["-p", "a", "1", "-p", "a", "2", "--study", "s"], "one -p, with all its values"),
        (["-p", "a", "1", "1", "--study", "s"], "parameter a needs one or more different values, got 1 1"),
        (["-p", "a", "--study", "s"], "parameter a needs one or more different values, got none"),
        (["-p", "a", "1", "--study", "../s"], "name of one folder"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(notebook, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main([str(notebook), *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() and not (notebook.parent / "log").exists()


def test_a_missing_notebook_is_a_plain_error(notebook, capsys):
    with pytest.raises(SystemExit):
        main([str(notebook.with_name("absent.ipynb")), "-p", "a", "1", "--study", "s"])
    assert "absent.ipynb" in capsys.readouterr().err


def test_grid_is_the_product_and_names_are_one_to_one():
    runs = grid({"p": ["a,q=1", "a"], "q": [1, 0.5]})
    assert list(runs.values()) == [{"p": p, "q": q} for p in ("a,q=1", "a") for q in (1, 0.5)]
    assert len(runs) == 4 and not any("/" in name for name in grid({"p": ["a/b", "a%2Fb", ".."]}))

"""Every notebook runs top to bottom in the smoke preset and records a result; typos fail before any work starts."""

import json
import math
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from looped_lib.core.errors import run as run_command
from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import find_root
from looped_lib.studies import batch
from looped_lib.studies.batch import CellError, ThisInterpreter, execute, export_html, main, parse_parameters

NOTEBOOKS = sorted((find_root() / "notebooks").glob("*.ipynb"))
RUNS = {
    "00_tour": {"fixed", "random", "stars"},
    "01_norm_placement": {f"{p}-LayerNorm-seed0" for p in ("pre_norm", "post_norm", "sandwich_branch", "sandwich_dual")},
    "02_random_loops": {f"{v}-seed0" for v in ("log_normal", "poisson", "uniform", "prelude", "coda", "prelude_coda", "l2")},
    "03_jacobian_regularization": {
        f"{v}-seed0" for v in ("random", "squared_fro", "spectral_norm", "spectral_radius", "public_code", "squared_fro_carry")
    },
    "04_trajectory_pca": {"fixed", "random", "stars"},
    "05_ouro_finetune": {"base-seed0", "sft-seed0", "stars-seed0"},
    "06_ouro_evaluate": {"random, word_problems"},
    "07_sweep": {"fixed", "random", "stars"},
    "09_beyond_the_paper": {"none-seed0"},
}
DEPTHS = {
    "05_ouro_finetune": list(range(1, 13)),
    "06_ouro_evaluate": [2, 4],
    "07_sweep": list(range(1, 13)),
}  # read out after no loop at all it is not Ouro
PARAMETERS = {
    "04_trajectory_pca": {"max_depth": 12, "certify_loops": 200},
    "06_ouro_evaluate": {"backend": "transformers"},
    "07_sweep": {"study": "seeds"},
}


def test_every_notebook_is_run_here_or_in_a_file_of_its_own():
    assert {n.stem for n in NOTEBOOKS} == {*RUNS, "08_report"}


@pytest.mark.parametrize("notebook", [n for n in NOTEBOOKS if n.stem in RUNS], ids=lambda p: p.stem)
def test_runs_in_the_smoke_preset(notebook, tmp_path):
    parameters = {"preset": "smoke", "out": str(tmp_path), **PARAMETERS.get(notebook.stem, {"max_depth": 12})}
    executed = execute(notebook, tmp_path, parameters)
    result = read_json(tmp_path / "result.json")
    depths = DEPTHS.get(notebook.stem, list(range(13)))
    assert result["depths"] == depths
    assert set(result["accuracy"]) == set(result["seconds"]) == RUNS[notebook.stem]
    for values in result["accuracy"].values():
        assert len(values) == len(depths) and all(math.isfinite(v) and 0 <= v <= 1 for v in values)
    outputs = [o for cell in nbformat.read(executed, 4).cells if cell.cell_type == "code" for o in cell.outputs]
    figures = [o for o in outputs if "plotly" in "".join(o.get("data", {}).get("text/html", ""))]
    assert len(figures) >= 2
    export_html(executed, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Plotly.newPlot" in page and "cdn.plot.ly/plotly" not in page.split("Plotly.newPlot")[-1]

    if notebook.stem == "04_trajectory_pca":
        check_dynamics(result)
    if notebook.stem == "06_ouro_evaluate":
        assert [row["task"] for row in result["table"]] == ["word_problems"] * 2 and result["failures"] == []
        assert "not run" in page and "T = 4" in page  # the paper's table and the answers, without a kernel


def check_dynamics(result):
    """Radius, rate, class and exit trade-off of each run, and the gains along its trajectory."""
    assert set(result["runs"]) == set(result["gains"]) == set(result["accuracy"])
    for name, run in result["runs"].items():
        assert sum(run["class"].values()) == 8 and run["n_loops"] <= 200
        assert 0 < run["radius"] <= run["radius_max"] and run["rate"] > 0
        loops, accuracy = run["exit"]["mean_loops"], run["exit"]["accuracy"]
        assert loops == sorted(loops) and 1 <= loops[0] and loops[-1] <= 12 and all(0 <= a <= 1 for a in accuracy)
        gains = result["gains"][name]
        assert result["loops"] == [1, 2, 4, 8, 12] and all(len(values) == 5 for values in gains.values())
        assert all(r <= s * (1 + 1e-6) for r, s in zip(gains["radius"], gains["sigma_max"], strict=True))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_thin_stripped_and_parametrised(notebook):
    cells = nbformat.read(notebook, 4).cells
    code = [c for c in cells if c.cell_type == "code"]
    assert [c for c in code if "parameters" in c.metadata.get("tags", [])] == code[:1]
    assert not any(c.outputs or c.execution_count for c in code)
    assert not any(re.search(r"^\s*(def|class) ", c.source, re.M) for c in code)
    steps = ([line for line in c.source.splitlines() if not line.startswith(("from ", "import "))] for c in code[1:])
    assert max(map(len, steps)) <= 10


def test_kernels_take_no_ports(tmp_path):
    """Ports are chosen before they are taken: kernels that start at the same time took each other's, and a run failed."""
    told = "from ipykernel.kernelapp import IPKernelApp\nk = IPKernelApp.instance()\nprint(k.transport, k.ip)"
    cells = [nbformat.v4.new_code_cell("x: int = 1", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(told)]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "n.ipynb")
    executed = nbformat.read(execute(tmp_path / "n.ipynb", tmp_path / "out", {}), 4)
    (output,) = executed.cells[-1].outputs
    transport, ip = output.text.split()
    assert transport == "ipc" and not Path(ip).parent.exists()  # a folder of its own, which is gone with the kernel


def test_links_and_pictures_lead_from_the_copy_where_they_led_from_the_notebook(tmp_path):
    (tmp_path / "of" / "figures").mkdir(parents=True)
    (tmp_path / "of" / "figures" / "a.png").touch()
    (tmp_path / "runs").mkdir()
    told = 'from IPython.display import Markdown\nMarkdown("[records](../runs), [far](https://a.b/c), [none](nowhere.md)")'
    cells = [nbformat.v4.new_markdown_cell("![a](figures/a.png)"), nbformat.v4.new_code_cell(told)]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "of" / "n.ipynb")
    copy = nbformat.read(execute(tmp_path / "of" / "n.ipynb", tmp_path / "runs" / "deep" / "out", {}), 4)
    texts = [c.source for c in copy.cells if c.cell_type == "markdown"] + [
        o.data["text/markdown"] for c in copy.cells for o in c.get("outputs", [])
    ]
    assert texts[-2] == "![a](../../../of/figures/a.png)"
    assert texts[-1] == "[records](../..), [far](https://a.b/c), [none](nowhere.md)"


def test_an_unknown_parameter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="01_norm_placement.ipynb has no parameter norm_placment; it has preset"):
        execute(NOTEBOOKS[1], tmp_path, {"norm_placment": "post_norm"})
    assert not list(tmp_path.iterdir())


def test_an_unknown_value_fails_before_any_training(tmp_path):
    parameters = {"preset": "smoke", "norm_placement": "prenorm"}
    with pytest.raises(CellError, match="notebook.ipynb, cell 4: ValueError: .* must be one of"):
        execute(NOTEBOOKS[1], tmp_path, {**parameters, "out": str(tmp_path)})
    assert not list(tmp_path.rglob("config.json"))


def test_parameters_are_literals_or_text():
    given = [["seed", "3"], ["weight", "0.1"], ["persistent", "True"], ["preset", "smoke"], ["out", "2026_01_15"]]
    assert parse_parameters(NOTEBOOKS[3], given) == {
        **{"seed": 3, "weight": 0.1, "persistent": True, "preset": "smoke", "out": "2026_01_15"}
    }


def test_a_value_of_another_type_is_refused_before_the_kernel_starts(tmp_path, capsys):
    for value in ("deep", "True", "1.5"):
        assert run_command(main, [str(NOTEBOOKS[1]), str(tmp_path / "out"), "-p", "max_depth", value]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: 01_norm_placement.ipynb: max_depth must be int, got ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_failed_cell_is_one_line(tmp_path, capsys):
    assert run_command(main, [str(NOTEBOOKS[1]), str(tmp_path), "-p", "preset", "smoke", "-p", "max_depth", "-3"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("cell 4: ValueError: max_depth must be a whole number from 1 to 1000000, got -3")
    assert not list(tmp_path.rglob("config.json"))


def test_kernels_start_where_the_temporary_folder_has_a_long_name(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert batch._socket_folder() == "/tmp"
    monkeypatch.setattr(batch.os, "access", lambda folder, mode: folder != "/tmp")
    with pytest.raises(ValueError, match="TMPDIR: the sockets of kernels need a folder whose name has at most"):
        batch._socket_folder()


def test_kernels_are_of_this_interpreter(tmp_path, monkeypatch):
    """Also where the user has a kernelspec `python3` of another one."""
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    write_json(spec, {"argv": ["/nowhere/python", "-f", "{connection_file}"], "display_name": "", "language": "python"})
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    assert ThisInterpreter(kernel_name="python3").kernel_spec.argv[0] == sys.executable


def test_notebook_files_are_json_with_stable_cell_ids():
    for notebook in NOTEBOOKS:
        ids = [c["id"] for c in json.loads(notebook.read_text())["cells"]]
        assert len(set(ids)) == len(ids)

"""Text is shown as it stands wherever it becomes HTML: in tables, figures, sentences and exported pages."""

import json
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from looped_lib.core.html import escape, escape_markdown
from looped_lib.dynamics.pca import Projection
from looped_lib.dynamics.trajectory import logit_lens, trajectory
from looped_lib.models.looped import LoopedTransformer
from looped_lib.ouro.evaluate.paper import STARS
from looped_lib.plots import bands, benchmarks, curves, finetuning, heatmaps, loop_counts, paths, sentences, spectra, walk
from looped_lib.report.figures import beside_paper
from looped_lib.runs.compare import Comparison
from looped_lib.studies.batch import export_html
from looped_lib.studies.paper import base
from looped_lib.widgets import answers, sweeps

EVIL = "<img src=x onerror=alert(1)>"
GROUPS = pd.DataFrame({"group": EVIL, "panel": EVIL, "seed": [0, 1], "depth": 4, "accuracy": 0.5, "step": 1, "ce": 1.0})
RUNS = pd.DataFrame({"study": EVIL, "run": [EVIL, "b"], "depth": 1, "state_norm": 1.0, "residual": 0.1, "step": 1, "ce": 1.0})
TUNED = pd.DataFrame({"step": [1], "loss": [1.0], "penalty": [1.0], "grad_norm": [1.0], "tokens_per_sec": [1.0]})
MEASURED = pd.DataFrame({"model": [EVIL], "task": EVIL, "depth": 4, "value": 0.5, "drop": 0.1, "stderr": 0.1})
PATH = Projection(np.zeros((3, 1, 2)), np.array([0.5, 0.5]), np.arange(3))
WALK = walk.Walk(
    **{"run": EVIL, "problem": EVIL, "point": EVIL, "loops": np.arange(2), "coordinates": np.zeros((2, 2))},
    **{"explained": np.ones(2), "residual": np.ones(2), "says": (EVIL, EVIL), "truth": EVIL.upper()},
    **{"depths": np.zeros(0, int), "accuracy": np.zeros(0)},
)
ROW = pd.Series({"exit tolerance": 0.1, "mean loops": 2.0, "accuracy, %": 50.0})
RECORD = {"class": {"drift": 1}, "n_loops": 5, "radius": 0.5, "rate": None}


def heat(walked=None):
    model = LoopedTransformer(replace(base("smoke").model, vocab_size=16))
    path = trajectory(model, torch.zeros(1, 2, dtype=torch.long), 2)
    return heatmaps.heatmaps(path, logit_lens(model, path), [EVIL, "b"], EVIL)


FIGURES = {
    "accuracy_bands": lambda: bands.accuracy_bands(GROUPS, EVIL),
    "loss_bands": lambda: bands.loss_bands(GROUPS.drop(columns="panel"), EVIL),
    "not_run": lambda: bands.accuracy_bands(GROUPS[:0], EVIL),
    "accuracy_by_depth": lambda: curves.accuracy_by_depth([4], {EVIL: [0.5]}, title=EVIL),
    "loss_by_step": lambda: curves.loss_by_step(RUNS),
    "residual_by_depth": lambda: curves.residual_by_depth(RUNS),
    "exit_tradeoff": lambda: curves.exit_tradeoff({EVIL: ([0.1], [2.0], [0.5])}),
    "benchmarks": lambda: benchmarks.benchmarks(MEASURED),
    "drop_from_peak": lambda: benchmarks.drop_from_peak(MEASURED),
    "beside_paper": lambda: beside_paper(STARS[STARS.model == "stars"].assign(model=f"stars-{EVIL}")),
    "finetuning": lambda: finetuning.finetuning({EVIL: TUNED}),
    "heatmaps": heat,
    "loop_counts": lambda: loop_counts.loop_counts({EVIL: base("smoke")}),
    "pca_trajectories": lambda: paths.pca_trajectories({EVIL: PATH}),
    "shared_trajectories": lambda: paths.shared_trajectories({EVIL: PATH}),
    "eigenvalue_cloud": lambda: spectra.eigenvalue_cloud({1: np.ones((1, 2), complex)}, EVIL),
    "gains_by_loop": lambda: spectra.gains_by_loop([1], {EVIL: {"radius": [0.5]}}),
    "walk_slider": lambda: walk.walk_slider(WALK),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_no_figure_reads_a_name_as_markup(draw):
    """Plotly knows a few tags and drops the others: a name with one would lose a part, and a link would work."""
    drawn = json.dumps(drop_keys(draw().to_plotly_json(), "legendgroup"), default=str, ensure_ascii=False).replace("\\u003c", "<")
    assert "<img" not in drawn and "<IMG" not in drawn
    assert "&lt;" in drawn  # and it is there


def drop_keys(value, key):
    """Without a key that is never shown."""
    if isinstance(value, dict):
        return {k: drop_keys(v, key) for k, v in value.items() if k != key}
    return [drop_keys(v, key) for v in value] if isinstance(value, list | tuple) else value


def test_no_table_reads_text_as_markup(capsys):
    states = pd.DataFrame(
        [["failed", 0.5, 1.0, None, 0.1, EVIL]],
        columns=["state", "progress", "seconds", "seconds_left", "held", "error"],
        index=pd.Index([EVIL], name="run"),
    )
    columns = ["group", "against", "loops", "difference", "low", "high", "p", "p_holm", "test"]
    test = pd.DataFrame([[EVIL, EVIL, EVIL, 0.1, 0.0, 0.2, 0.5, 0.5, EVIL]], columns=columns)
    written = {"problem": 0, "question": EVIL, "target": EVIL, "model": EVIL, "depth": 4, "right": 1.0, "answer": EVIL}
    wrote = pd.DataFrame([written])
    shown = [sweeps.show(states).to_html(), Comparison(states, GROUPS, GROUPS[:0], test).tests.to_html()]
    shown += [answers.overview(wrote).to_html(), answers.page(wrote, 0)]
    assert all("<img" not in html and "&lt;img" in html for html in shown)


def test_no_sentence_reads_a_name_as_markup():
    said = sentences.dynamics_sentences({EVIL: RECORD}, pd.DataFrame({EVIL: ROW}).T)
    assert "<img" not in said and "&lt;img" in said
    assert escape_markdown("a_b*c [d](e)\n# f") == "a&#95;b&#42;c &#91;d&#93;(e) &#35; f"
    assert escape('"<a>"') == "&quot;&lt;a&gt;&quot;"


def test_an_exported_page_reads_no_html_in_markdown(tmp_path):
    markdown = nbformat.v4.new_output("display_data", {"text/markdown": f"**{EVIL}** [x](javascript:alert(1))\n\n{EVIL}"})
    failed = nbformat.v4.new_output("error", ename="ValueError", evalue=EVIL, traceback=[EVIL])
    printed = nbformat.v4.new_output("stream", text=EVIL)
    cells = [
        nbformat.v4.new_markdown_cell(f"# Title {EVIL}"),
        nbformat.v4.new_code_cell("x", outputs=[markdown, failed, printed]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    export_html(tmp_path / "n.ipynb", tmp_path / "n.html")
    page = (tmp_path / "n.html").read_text()
    assert "<img" not in page.split("<body", 1)[1] and "javascript:alert" not in page
    assert page.count("&lt;img") >= 5 and "<title>Title &lt;img" in page

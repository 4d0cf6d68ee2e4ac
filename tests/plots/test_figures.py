"""Figures show the numbers they are given, with axis titles and legends; sentences say what the numbers say."""

import math
import re

import nbformat
import numpy as np
import pandas as pd
import pytest

from looped_lib.dynamics.pca import Projection
from looped_lib.plots import curves, paths, sentences
from looped_lib.studies.batch import export_html

DEPTHS = [0, 1, 2, 4, 200]
ACCURACY = {
    "fixed": [0.0, 0.1, 0.5, 0.99, 0.01],
    "random": [0.0, 0.2, 0.9, 1.0, 0.4],
    "stars": [0.0, 0.0, 1.0, 0.995, 1.0],
}


def titled(figure) -> bool:
    axes = [figure.layout[a] for a in figure.layout if a.startswith(("xaxis", "yaxis"))]
    return bool(figure.layout.title.text) and all(axis.title.text for axis in axes)


def test_accuracy_by_depth_draws_every_run_in_percent():
    figure = curves.accuracy_by_depth(DEPTHS, ACCURACY, trained=4)
    assert [t.name for t in figure.data] == list(ACCURACY) and titled(figure)
    assert list(figure.data[0].x) == DEPTHS[1:]  # a log axis has no 0
    assert list(figure.data[2].y) == pytest.approx([0, 100, 99.5, 100])
    assert list(curves.accuracy_by_depth(DEPTHS, ACCURACY, log=False).data[0].x) == DEPTHS


def test_the_trained_depth_is_marked_where_it_is():
    """A line's position is in data units on every axis, an annotation's is log10 on a log axis."""
    for log, expected in ((True, math.log10(4)), (False, 4)):
        figure = curves.accuracy_by_depth(DEPTHS, ACCURACY, trained=4, log=log)
        assert figure.layout.shapes[0].x0 == 4 and len(figure.layout.annotations) == 1
        assert figure.layout.annotations[0].text == "fixed training depth 4" and figure.layout.annotations[0].x == expected


def test_many_runs_are_told_apart():
    figure = curves.accuracy_by_depth([1], {str(i): [0.5] for i in range(20)})
    assert len({(t.line.color, t.line.dash) for t in figure.data}) == 20


def test_a_run_has_one_colour_in_every_figure():
    metrics = pd.DataFrame({"study": "s", "run": ["a", "b"], "step": 1, "ce": [2.0, 3.0]})
    figures = curves.loss_by_step(metrics), curves.accuracy_by_depth([1], {"b": [0.5], "a": [0.5]})
    colours = [{t.name: t.line.color for t in figure.data} for figure in figures]
    assert colours[0] == colours[1] and len(set(colours[0].values())) == 2


def test_curves_by_run():
    metrics = pd.DataFrame({"study": "s", "run": ["a", "a", "b"], "step": [1, 2, 1], "ce": [2.0, 1.0, 3.0]})
    figure = curves.loss_by_step(metrics)
    assert [t.name for t in figure.data] == ["a", "b"] and list(figure.data[0].y) == [2.0, 1.0] and titled(figure)
    runs = pd.DataFrame({"study": "s", "run": "a", "depth": [0, 1], "state_norm": [3.0, 4.0], "residual": [None, 0.1]})
    for draw, last in ((curves.state_norm_by_depth, 4.0), (curves.residual_by_depth, 0.1)):
        figure = draw(runs)
        assert titled(figure) and figure.layout.yaxis.type == "log" and figure.data[0].y[-1] == last


def test_runs_of_one_name_in_two_studies_are_two_lines():
    metrics = pd.DataFrame({"study": ["s", "t"], "run": "a", "step": 1, "ce": [2.0, 3.0]})
    assert [(t.name, list(t.y)) for t in curves.loss_by_step(metrics).data] == [("s/a", [2.0]), ("t/a", [3.0])]


@pytest.mark.parametrize("components", [2, 3])
def test_pca_panels_carry_the_explained_variance(components):
    coordinates, explained = np.random.default_rng(0).normal(size=(7, 3, components)), np.array([0.5, 0.3, 0.1])[:components]
    projection = Projection(coordinates, explained, np.arange(7))
    figure = paths.pca_trajectories({"a": projection, "b": projection})
    assert len(figure.data) == 6 and [a.text for a in figure.layout.annotations] == ["a", "b"]
    for panel in (figure.layout, figure.layout) if components == 2 else (figure.layout.scene, figure.layout.scene2):
        for axis, share in zip("xyz", projection.explained, strict=False):
            assert panel[f"{axis}axis"].title.text.endswith(f"({100 * share:.0f} % of variance)")
    for k, axis in enumerate("xyz"[:components]):
        assert list(figure.data[1][axis]) == pytest.approx(projection.coordinates[:, 1, k].tolist())
    assert figure.data[0].marker.symbol[0] == "circle-open" and figure.data[0].marker.symbol[-1] == "diamond"


def test_the_tours_sentences_are_worded_from_the_numbers():
    text = sentences.tour_sentences(DEPTHS, ACCURACY)
    assert (
        "trained at 4 loops solves 99.0 % of the held-out problems at 4 loops; it first falls below half of that at 200" in text
    )
    assert (
        "the model with the penalty and carried states solves at least 99.5 % (its lowest, at 4 loops); "
        "at 200 loops it solves 100.0 %, random loops alone 40.0 %." in text
    )


def test_the_tours_sentences_claim_no_collapse_that_is_not_there():
    flat = {name: [0.5] * 3 for name in ACCURACY}
    text = sentences.tour_sentences([0, 1, 2], flat)
    assert "trained at 4 loops solves 50.0 % of the held-out problems at 2 loops; it stays at half of that or more" in text


def test_an_exported_page_holds_its_figures_and_fetches_nothing(tmp_path):
    figure = curves.accuracy_by_depth(DEPTHS, ACCURACY)
    picture = {"text/html": figure.to_html(full_html=False, include_plotlyjs=False, include_mathjax="cdn")}
    bar = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "the bar"}
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data) for data in (picture, bar)])
    widgets = {"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2, "version_minor": 0}}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=widgets), tmp_path / "notebook.ipynb")
    export_html(tmp_path / "notebook.ipynb", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Plotly.newPlot" in page and "the bar" not in page
    assert not re.search(r"""<script[^>]*\ssrc=|<link[^>]*\shref=|unpkg\.com""", page)

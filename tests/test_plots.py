"""Figures show the numbers they are given, with axis titles and legends; sentences say what the numbers say."""

import pandas as pd
import pytest
import torch

from looped_lib import plots
from looped_lib.trajectory import project

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
    figure = plots.accuracy_by_depth(DEPTHS, ACCURACY, trained=4)
    assert [t.name for t in figure.data] == list(ACCURACY) and titled(figure)
    assert list(figure.data[0].x) == DEPTHS[1:]  # a log axis has no 0
    assert list(figure.data[2].y) == pytest.approx([0, 100, 99.5, 100])
    assert list(plots.accuracy_by_depth(DEPTHS, ACCURACY, log=False).data[0].x) == DEPTHS


def test_curves_by_run():
    metrics = pd.DataFrame({"run": ["a", "a", "b"], "step": [1, 2, 1], "ce": [2.0, 1.0, 3.0]})
    figure = plots.loss_by_step(metrics)
    assert [t.name for t in figure.data] == ["a", "b"] and list(figure.data[0].y) == [2.0, 1.0] and titled(figure)
    runs = pd.DataFrame({"run": ["a", "a"], "depth": [0, 1], "state_norm": [3.0, 4.0], "residual": [None, 0.1]})
    for draw in (plots.state_norm_by_depth, plots.residual_by_depth):
        assert titled(draw(runs))


def test_pca_panels_carry_the_explained_variance():
    torch.manual_seed(0)
    projection = project(torch.randn(7, 3, 2, 5))
    figure = plots.pca_trajectories({"a": projection, "b": projection})
    assert len(figure.data) == 6 and titled(figure)
    assert f"{100 * projection.explained[0]:.0f} % of variance" in figure.layout.xaxis.title.text
    assert list(figure.data[0].x) == pytest.approx(projection.coordinates[:, 0, 0].tolist())


def test_the_tours_sentences_are_worded_from_the_numbers():
    text = plots.tour_sentences(DEPTHS, ACCURACY)
    assert "trained at 4 loops solves 99.0 % of the held-out problems there and 1.0 % at 200 loops" in text
    assert "STARS never solves fewer than 99.5 % (at 4 loops), where random loops alone fall to 40.0 % (at 200 loops)" in text

"""The report's figures show the numbers they are given, are told apart, and say when there is nothing to show."""

from dataclasses import replace

import pandas as pd
import pytest

from looped_lib.ouro.evaluate.paper import STARS, TASKS
from looped_lib.ouro.evaluate.tables import headlines, results
from looped_lib.plots import bands, loop_counts
from looped_lib.plots.style import LOOP_TICKS
from looped_lib.report.figures import beside_paper, gains
from looped_lib.studies.sizes import base, loops

BANDS = {
    "accuracy": bands.accuracy_bands,
    "state_norm": bands.state_norm_bands,
    "residual": bands.residual_bands,
    "ce": bands.loss_bands,
}


def curves(**columns) -> pd.DataFrame:
    """Two groups of two seeds at depths 0, 1, 4; a quantity is 1 to 4 tenths, more in the second group and seed."""
    rows = [
        (group, seed, depth, (1 + 2 * (group == "b") + seed) / 10) for group in "ba" for seed in (0, 1) for depth in (0, 1, 4)
    ]
    table = pd.DataFrame(rows, columns=["group", "seed", "depth", "accuracy"])
    return table.assign(**{name: table.accuracy for name in ("state_norm", "residual", "ce")}, step=table.depth, **columns)


def says_not_run(figure) -> bool:
    return not figure.data and [note.text for note in figure.layout.annotations] == ["not run"]


@pytest.mark.parametrize("quantity", BANDS)
def test_a_group_is_its_mean_in_a_band(quantity):
    figure = BANDS[quantity](curves(), "A title")
    scale = 100 if quantity == "accuracy" else 1
    named = {trace.name: trace for trace in figure.data if trace.name}
    assert list(named) == ["b", "a"] and figure.layout.title.text == "A title"
    assert list(named["b"].x) == [1, 4] and list(named["b"].y) == pytest.approx([0.35 * scale] * 2)
    band = next(trace for trace in figure.data if trace.fill and trace.legendgroup == "b")
    assert (min(band.y), max(band.y)) == pytest.approx((0.3 * scale, 0.4 * scale))
    assert figure.layout.yaxis.type == (None if quantity == "accuracy" else "log")
    assert figure.layout.xaxis.type == (None if quantity == "ce" else "log")


@pytest.mark.parametrize("quantity", BANDS)
def test_without_runs_a_figure_says_so(quantity):
    figure = BANDS[quantity](curves()[:0], "A title")
    assert says_not_run(figure) and figure.layout.title.text == "A title"


def test_a_state_at_rest_or_overflown_has_no_point():
    table = curves()
    table.loc[(table.group == "a") & (table.depth == 4), ["residual", "state_norm"]] = [0.0, float("nan")]
    for draw in (bands.residual_bands, bands.state_norm_bands):
        lines = {trace.name: trace for trace in draw(table).data if trace.name}
        assert list(lines["a"].x) == [1] and list(lines["b"].x) == [1, 4]


def test_labels_of_a_log_axis_are_as_many_as_its_range_needs():
    table = curves()
    assert bands.state_norm_bands(table).layout.yaxis.minorloglabels == "complete"
    table.loc[table.group == "b", "state_norm"] *= 1000
    assert bands.state_norm_bands(table).layout.yaxis.dtick == 1


def test_panels_share_axes_colours_and_one_legend():
    table = pd.concat([curves(panel="left"), curves(panel="right"), curves(panel="below")])
    figure = bands.accuracy_bands(table)
    named = [trace for trace in figure.data if trace.name]
    assert [(trace.name, trace.xaxis) for trace in named] == [(g, x) for x in ("x", "x2", "x3") for g in "ba"]
    assert [trace.name for trace in named if trace.showlegend] == ["b", "a"]
    assert len({(trace.name, trace.line.color) for trace in named}) == 2
    texts = [note.text for note in figure.layout.annotations]
    assert texts == ["left", "right", "below", "loops T", "exact match, % of held-out problems"]
    assert {figure.layout[f"xaxis{i}"].matches for i in ("", 2)} == {"x3"} and figure.layout.yaxis.matches == "y3"


def test_deep_panels_have_room_for_every_other_label():
    table = pd.concat([curves(panel="left"), curves(panel="right")])
    assert len(bands.accuracy_bands(table).layout.xaxis.tickvals) == len(LOOP_TICKS)
    deep = pd.concat([table, table.assign(depth=10_000)])
    assert list(bands.accuracy_bands(deep).layout.xaxis2.tickvals) == [2, 8, 32, 100, 500, 2000, 10_000]
    assert len(bands.accuracy_bands(deep.drop(columns="panel")).layout.xaxis.tickvals) == len(LOOP_TICKS)


def test_long_names_stand_below_the_curves():
    table = curves()
    assert bands.accuracy_bands(table).layout.legend.orientation is None
    table["group"] = "sandwich_branch-LayerNorm"
    few = bands.accuracy_bands(table).layout
    assert few.legend.orientation == "h"
    many = pd.concat([table.assign(group=f"sandwich_branch-LayerNorm-{i}") for i in range(11)])
    tall = bands.accuracy_bands(many).layout
    assert tall.height - tall.margin.b == few.height - few.margin.b and tall.margin.b > few.margin.b  # the plot keeps its place


def test_loop_counts_are_those_training_draws():
    smoke = base("smoke")
    config = replace(smoke, loops=loops("smoke", "uniform"), training=replace(smoke.training, steps=40))
    bars, marks = loop_counts.loop_counts({"uniform": config}).data
    drawn = [config.loops.sample(config.seed, step) for step in range(40)]
    assert list(bars.x) == [2, 3, 4, 5] and list(bars.y) == pytest.approx([100 * drawn.count(t) / 40 for t in bars.x])
    assert list(marks.y) == pytest.approx([25.0] * 4)


def test_every_sequence_of_its_own_depth_counts():
    smoke = base("smoke")
    training = replace(smoke.training, steps=2, batch_size=5, per_sequence_loops=True)
    config = replace(smoke, loops=loops("smoke", "uniform"), training=training)
    bars, _ = loop_counts.loop_counts({"uniform": config}).data
    assert sum(bars.y) == pytest.approx(100) and all(share % 10 == pytest.approx(0) for share in bars.y)


def test_distributions_stand_side_by_side():
    smoke = base("smoke")
    configs = {name: replace(smoke, loops=loops("smoke", name)) for name in ("log_normal", "poisson", "uniform")}
    figure = loop_counts.loop_counts(configs)
    assert [note.text for note in figure.layout.annotations] == ["log_normal: mean 3.2", "poisson: mean 3.2", "uniform: mean 3.5"]
    assert [trace.name for trace in figure.data if trace.showlegend] == ["drawn", "probability"]
    assert says_not_run(loop_counts.loop_counts({}))


def test_gains_have_a_panel_each():
    gain = {"radius": [1.0, 0.5], "sigma_max": [3.0, 2.0], "rms": [0.5, 0.2]}
    figure = gains({"loops": [1, 2], "gains": {"fixed": gain, "stars": gain}}, "Gains")
    assert [(t.name, t.xaxis) for t in figure.data] == [(run, x) for run in ("fixed", "stars") for x in ("x", "x2", "x3")]
    assert [list(t.y) for t in figure.data[:3]] == list(gain.values()) and figure.layout.title.text == "Gains"
    assert says_not_run(gains(None, "Gains"))


def test_ours_stand_beside_the_papers_averages():
    ours = STARS[STARS.model == "stars"].assign(model="stars-seed0", value=0.5)
    figure = beside_paper(pd.concat([ours, ours.assign(depth=16)[ours.task != "amc23"]]))
    points = {trace.name: trace for trace in figure.data}
    assert list(points) == ["base, paper", "sft, paper", "stars-seed0, ours", "stars, paper"]
    assert list(points["base, paper"].y) == pytest.approx([67.41, 55.09], abs=0.01)
    assert list(points["stars-seed0, ours"].x) == [4, 8]  # at 16 loops one of the five is missing
    assert list(points["stars-seed0, ours"].y) == pytest.approx([50, 50])
    assert points["stars-seed0, ours"].line.color == points["stars, paper"].marker.color


def test_benchmarks_that_were_not_run_are_not_drawn(tmp_path):
    assert says_not_run(beside_paper(headlines(results(tmp_path))))
    assert says_not_run(beside_paper(STARS[STARS.task == TASKS[0]]))
    assert says_not_run(beside_paper(pd.DataFrame(columns=["model", "task", "depth", "value"])))

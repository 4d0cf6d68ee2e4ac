"""Benchmarks by loop count: a panel per task, one colour per model in all of them, errors as long as they are."""

import pandas as pd
import pytest

from looped_lib.ouro.evaluate.paper import STARS
from looped_lib.ouro.evaluate.tables import drops, headlines, results
from looped_lib.plots import benchmarks


def table() -> pd.DataFrame:
    rows = [(m, t, d, d / 10, d / 100) for t in ("x", "y") for m in ("b", "a") for d in (8, 4)]
    return pd.DataFrame(rows, columns=["model", "task", "depth", "value", "stderr"])


def test_each_task_has_a_panel_and_each_model_a_line_of_its_numbers():
    figure = benchmarks.benchmarks(table())
    assert [note.text for note in figure.layout.annotations] == ["x", "y", "loops T"]
    assert [(trace.name, trace.xaxis) for trace in figure.data] == [("a", "x"), ("b", "x"), ("a", "x2"), ("b", "x2")]
    for trace in figure.data:
        assert list(trace.x) == [4, 8] and list(trace.y) == pytest.approx([40, 80])
        assert list(trace.error_y.array) == pytest.approx([4, 8])
    assert (
        figure.layout.xaxis.tickvals == (4, 8)
        and figure.layout.xaxis.type == "log"
        and "standard error" in figure.layout.title.text
    )


def test_a_model_has_one_colour_and_one_entry_in_the_legend():
    figure = benchmarks.benchmarks(table())
    colours = {(trace.name, trace.line.color) for trace in figure.data}
    assert len(colours) == 2 and [trace.name for trace in figure.data if trace.showlegend] == ["a", "b"]
    dropped = {(trace.name, trace.line.color) for trace in benchmarks.drop_from_peak(drops(table())).data}
    assert dropped == colours


def test_exits_stand_beside_the_loop_counts_at_their_mean_loops():
    rows = [("a", task, by, n, 0.5 + n / 10) for task in ("x", "z") for by in ("gate", "kl") for n in (2.5, 1.5)]
    exits = pd.DataFrame(rows, columns=["model", "task", "exit", "loops", "value"])
    figure = benchmarks.benchmarks(table(), exits)
    drawn = figure.data[len(benchmarks.benchmarks(table()).data) :]
    assert [(trace.name, trace.xaxis) for trace in drawn] == [
        (f"a, exit by {by}", axis) for axis in ("x", "x3") for by in ("gate", "kl")
    ]
    assert all(list(trace.x) == [1.5, 2.5] and list(trace.y) == pytest.approx([65, 75]) for trace in drawn)
    assert {trace.line.color for trace in drawn} == {trace.line.color for trace in figure.data if trace.name == "a"}


def test_published_numbers_have_no_error_bars():
    figure = benchmarks.benchmarks(STARS)
    assert len(figure.data) == 15 and all(trace.error_y.array is None for trace in figure.data)
    assert "error" not in figure.layout.title.text


def test_what_is_lost_is_below_zero():
    figure = benchmarks.drop_from_peak(drops(STARS))
    lost = {trace.name: list(trace.y) for trace in figure.data}
    assert lost["base"] == pytest.approx([0, -12.324], abs=0.01) and lost["stars"] == pytest.approx([0, -8.63], abs=0.01)


def test_nothing_measured_is_an_empty_figure(tmp_path):
    empty = headlines(results(tmp_path))
    assert not benchmarks.benchmarks(empty).data and not benchmarks.drop_from_peak(drops(empty)).data

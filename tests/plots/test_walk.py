"""The panels of a walk show its numbers, the current loop is marked in all of them, and the slider needs no kernel."""

import math
from dataclasses import replace

import numpy as np
import pytest

from looped_lib.plots.walk import Walk, move, redraw, walk_figure, walk_slider

RNG = np.random.default_rng(0)
FLAT = Walk(
    run="study/run",
    problem="12+34=",
    point="whole state",
    loops=np.arange(2, 9),
    coordinates=RNG.normal(size=(7, 2)),
    explained=np.array([0.6, 0.3]),
    residual=RNG.random(7),
    says=(" 64§", " 65§", "§64§", *[" 64§"] * 4),
    truth=" 64§",
    depths=np.arange(6),
    accuracy=RNG.random(6),
)
SOLID = replace(FLAT, coordinates=RNG.normal(size=(7, 3)), explained=np.array([0.6, 0.3, 0.06]))


def shown(figure) -> list[dict]:
    """What is drawn: all traces but the hidden ones, as plain lists."""
    return [t for t in figure.to_dict()["data"] if t.get("visible") is not False]


def marked(figure) -> list[list[float]]:
    """Where the markers stand: trajectory, residual, accuracy."""
    return [[t[n][0] for n in "xyz" if n in t] for t in shown(figure)[1::2]]


@pytest.mark.parametrize("walk", [FLAT, SOLID], ids=["2-D", "3-D"])
def test_the_panels_show_the_numbers(walk):
    figure = walk_figure(walk, 3)
    path, _, residual, _, accuracy, _ = [t for t in figure.data if t.visible is not False]
    for k, name in enumerate("xyz"[: len(walk.explained)]):
        assert path[name] == pytest.approx(walk.coordinates[:, k])
        axis = (figure.layout if walk is FLAT else figure.layout.scene)[f"{name}axis"].title.text
        assert axis.startswith(f"PC {k + 1} ({100 * walk.explained[k]:.0f} % of var")
    assert residual.x.tolist() == list(range(2, 9)) and residual.y == pytest.approx(walk.residual)
    assert accuracy.x.tolist() == list(range(6)) and accuracy.y == pytest.approx(100 * walk.accuracy)
    assert figure.layout.yaxis2.type == "log" and figure.layout.xaxis3.matches == "x2"
    assert all(t.hovertemplate or t.hoverinfo == "skip" for t in figure.data if t.visible is not False)


def test_points_say_where_the_answer_is_wrong():
    colours = walk_figure(FLAT, 2).data[0].marker.color
    assert [c == colours[0] for c in colours] == [True, False, False, True, True, True, True]


@pytest.mark.parametrize("walk", [FLAT, SOLID], ids=["2-D", "3-D"])
def test_the_loop_is_marked_in_every_panel(walk):
    figure = walk_figure(walk, 3)
    for loop in (3, 5, 2):
        move(figure, walk, loop)
        assert marked(figure) == [
            walk.coordinates[loop - 2].tolist(),
            [loop, walk.residual[loop - 2]],
            [loop, 100 * walk.accuracy[loop]],
        ]
        assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == loop
        assert figure.layout.title.text.startswith(f"after {loop} loops: says ")


def test_no_marker_where_there_is_no_value():
    assert marked(walk_figure(FLAT, 8))[2] == [8, None]  # accuracy was measured to depth 5 only
    first = replace(FLAT, loops=np.arange(7), residual=np.array([math.nan, *FLAT.residual[1:]]))
    assert marked(walk_figure(first, 0))[1] == [0, None]
    with pytest.raises(ValueError, match="holds loops 2 to 8, not 1"):
        walk_figure(FLAT, 1)


def test_the_title_marks_the_wrong_characters():
    def title(loop):
        return walk_figure(FLAT, loop).layout.title.text.split("<br>")[0]

    assert title(2) == "after 2 loops: says 46 (written ␣64§) · truth 46 (written ␣64§)"
    assert (
        title(3).count("<b>") == 1 and "</b>§) · truth 46 (" in title(3) and "says 56 (" in title(3) and ">5</span>" in title(3)
    )
    assert title(4).startswith("after 4 loops: says – (written <b>") and title(4).endswith("64§) · truth 46 (written ␣64§)")


def test_a_run_without_accuracy_says_so():
    bare = replace(FLAT, depths=np.arange(0), accuracy=np.zeros(0))
    figure = walk_figure(bare, 2)
    assert figure.layout.annotations[-1].text == "not measured: the run has no result.json" and marked(figure)[2] == [2, None]
    redraw(figure, FLAT, 2)
    assert figure.layout.annotations[-1].text == ""


@pytest.mark.parametrize("before, after", [(FLAT, SOLID), (SOLID, FLAT), (FLAT, replace(FLAT, loops=np.arange(7), truth=" 65§"))])
def test_redrawn_is_as_drawn_anew(before, after):
    figure, anew = walk_figure(before, 2), walk_figure(after, 4)
    redraw(figure, after, 4)
    assert shown(figure) == shown(anew)
    mine, theirs = figure.to_dict()["layout"], anew.to_dict()["layout"]
    for axis in "xyz" if after is SOLID else ():
        assert mine["scene"][f"{axis}axis"] == theirs["scene"][f"{axis}axis"]
    for name in ("title", "shapes", "annotations", "xaxis2", *(() if after is SOLID else ("xaxis", "yaxis"))):
        assert mine[name] == theirs[name], name
    assert mine["xaxis"]["visible"] == theirs["xaxis"]["visible"] == (after is not SOLID)


@pytest.mark.parametrize("walk", [FLAT, SOLID], ids=["2-D", "3-D"])
def test_the_slider_has_a_small_frame_for_every_loop(walk):
    figure = walk_slider(walk)
    assert [f.name for f in figure.frames] == [s.label for s in figure.layout.sliders[0].steps] == [str(t) for t in range(2, 9)]
    assert [b.label for b in figure.layout.updatemenus[0].buttons] == ["▶", "❚❚"]
    for loop, frame in zip(walk.loops.tolist(), figure.frames, strict=True):
        still = walk_figure(walk, loop)
        for i, trace in zip(frame.traces, frame.data, strict=True):
            assert trace.type == still.data[i].type and trace.x == still.data[i].x and trace.y == still.data[i].y
        assert frame.layout.title.text == still.layout.title.text and frame.layout.shapes[0] == still.layout.shapes[0]
    assert len(str(figure.frames[0].to_plotly_json())) < 1500


def test_a_hundred_loops_are_a_small_page():
    n = 101
    many = replace(SOLID, loops=np.arange(n), coordinates=RNG.normal(size=(n, 3)), residual=RNG.random(n), says=(" 64§",) * n)
    assert len(walk_slider(many).to_html(include_plotlyjs=False)) < 200_000

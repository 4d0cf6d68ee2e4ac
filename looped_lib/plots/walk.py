"""One problem's walk through the loops of one run: trajectory, residual, accuracy and answer, the current loop marked in all.

`walk_figure` draws it at one loop; `move` and `redraw` change such a figure in place, which is what the explorer does.
`walk_slider` is the same with plotly's own slider: it needs no kernel, and stays in saved notebooks and HTML pages.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.subplots import make_subplots

from looped_lib.core.html import escape
from looped_lib.plots.style import PALETTE, TEMPLATE

_AXES = "xyz"
_RIGHT, _WRONG, _NOW = PALETTE[0], PALETTE[5], PALETTE[3]
_MS_PER_LOOP = 150
_SIGNS = "sums are written with the last digit first; ␣ is a space, § the end, Ʌ padding"
_NOTE = "each character is predicted after the true ones before it"


@dataclass(frozen=True)
class Walk:
    """What the panels show."""

    run: str
    """Name of the run."""
    problem: str
    """What the model is asked: `12+34=`."""
    point: str
    """Whose path it is: the whole state, or the state of which position."""
    loops: Int[np.ndarray, "loop"]
    """Loop counts, ascending."""
    coordinates: Float[np.ndarray, "loop component"]
    """Position after each of them on two or three principal components, in units of the state."""
    explained: Float[np.ndarray, "component"]
    """Share of the variance along each component, 0 to 1."""
    residual: Float[np.ndarray, "loop"]
    """||h_t - h_{t-1}|| / ||h_{t-1}||; NaN at loop 0."""
    says: tuple[str, ...]
    """The answer predicted after each loop count: the most probable character after the problem, and after each prefix of the
    true answer. Where all are right, greedy decoding gives the true answer (see `depth`)."""
    truth: str
    """The true answer with its end, as many characters."""
    depths: Int[np.ndarray, "depth"]
    """Loop counts at which the run's accuracy was measured; none if it was not."""
    accuracy: Float[np.ndarray, "depth"]
    """Exact match on held-out problems at each of them, 0 to 1."""


def walk_figure(walk: Walk, loop: int) -> go.Figure:
    """The walk in 2-D or 3-D, as it has components, with loop count `loop` marked. ValueError if the walk does not hold it."""
    path = f"Trajectory: ○ first, ◆ last; answer {_coloured('right', _RIGHT)}, {_coloured('wrong', _WRONG)}"
    figure = make_subplots(
        2,
        2,
        specs=[[{"rowspan": 2}, {}], [None, {}]],
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.14,
        vertical_spacing=0.14,
        subplot_titles=[path, "Change in each loop", "Accuracy on held-out problems"],
    )
    figure.add_traces([go.Scatter(), go.Scatter(), go.Scatter3d(), go.Scatter3d()])  # 2-D and 3-D share a panel: one is hidden
    for row in (1, 2):
        figure.add_traces([go.Scatter(), go.Scatter()], rows=row, cols=2)
    figure.update_traces(showlegend=False)
    figure.add_annotation(xref="x3 domain", yref="y3 domain", x=0.5, y=0.5, showarrow=False)  # `_describe` words it
    figure.update_annotations(font_size=13)
    figure.add_shape(type="line", xref="x2", yref="paper", y0=0, y1=1, line={"color": _NOW, "width": 1, "dash": "dot"})
    small = {f"{n}axis": {"title": {"font": {"size": 12}}, "tickfont": {"size": 11}, "nticks": 5} for n in _AXES}
    camera = {"eye": {"x": 1.6, "y": 1.6, "z": 0.9}, "center": {"z": -0.15}}
    domain = {"x": figure.layout.xaxis.domain, "y": figure.layout.yaxis.domain}
    figure.update_layout(
        template=TEMPLATE,
        autosize=True,
        height=620,
        margin={"t": 150},
        hovermode="closest",
        title={"x": 0.02, "xref": "container", "y": 0.94, "yanchor": "top", "font": {"size": 15}},
        xaxis2={"showticklabels": False},
        xaxis3={"title": {"text": "loops"}, "matches": "x2"},
        yaxis2={"title": {"text": "||Δh|| / ||h||"}, "type": "log", "tickformat": "~g", "minorloglabels": "complete"},
        yaxis3={"title": {"text": "exact match, %"}, "range": [-5, 105]},
        scene=small | {"camera": camera, "aspectmode": "cube", "domain": domain},
    )
    redraw(figure, walk, loop)
    return figure


def redraw(figure: go.Figure, walk: Walk, loop: int) -> None:
    """Show another walk, of two or three components, in the same figure."""
    with figure.batch_update():
        for trace, values in zip(figure.data, _traces(walk), strict=True):
            trace.update(values)
        _describe(figure, walk)
        move(figure, walk, loop)


def move(figure: go.Figure, walk: Walk, loop: int) -> None:
    """Mark another loop count of the same walk: three markers, a line and the title, nothing else."""
    with figure.batch_update():
        for i, values in _marks(walk, loop).items():
            figure.data[i].update(values)
        figure.layout.shapes[0].update(_line(loop))
        figure.layout.title.text = _title(walk, loop)


def walk_slider(walk: Walk) -> go.Figure:
    """`walk_figure` with plotly's own slider and play and pause buttons over the loops; a frame holds only what moves."""
    figure = walk_figure(walk, int(walk.loops[0]))
    still = {"mode": "immediate", "transition": {"duration": 0}}
    steps, frames = [], []
    for loop in map(int, walk.loops):
        changes = {"title": {"text": _title(walk, loop)}, "shapes": [figure.layout.shapes[0].to_plotly_json() | _line(loop)]}
        marks = {i: type(figure.data[i])(values) for i, values in _marks(walk, loop).items()}
        frames.append(go.Frame(name=str(loop), data=list(marks.values()), traces=list(marks), layout=changes))
        show = still | {"frame": {"duration": 0, "redraw": True}}
        steps.append({"label": str(loop), "method": "animate", "args": [[str(loop)], show]})
    play = still | {"fromcurrent": True, "frame": {"duration": _MS_PER_LOOP, "redraw": True}}
    buttons = [
        {"label": "▶", "method": "animate", "args": [None, play]},
        {"label": "❚❚", "method": "animate", "args": [[None], still | {"frame": {"duration": 0, "redraw": False}}]},
    ]
    figure.frames = frames
    slider = {"steps": steps, "currentvalue": {"prefix": "after loops: "}, "x": 0.1, "len": 0.9, "pad": {"t": 75}}
    menu = {"type": "buttons", "direction": "left", "buttons": buttons, "showactive": False}
    menu |= {"x": 0, "xanchor": "left", "y": 0, "yanchor": "top", "pad": {"t": 90}}
    return figure.update_layout(sliders=[slider], updatemenus=[menu], height=700)


def _traces(walk: Walk) -> list[dict[str, Any]]:
    """What depends on the walk in the traces of the figure, each line before its marker: the path in 2-D, the path in 3-D (one
    of them hidden), residual, accuracy."""
    names = _AXES[: len(walk.explained)]
    last = len(walk.loops) - 1
    path = dict(zip(names, walk.coordinates.T, strict=True)) | {
        "mode": "lines+markers",
        "line": {"width": 1, "color": "#999999"},
        "marker": {
            "color": [_RIGHT if said == walk.truth else _WRONG for said in walk.says],
            "symbol": ["circle-open", *["circle"] * (last - 1), "diamond"],
            "size": [10, *[5] * (last - 1), 10],
            "opacity": 1,
        },
        "customdata": walk.loops,
        "text": [_visible(said) for said in walk.says],
        "hovertemplate": "loop %{customdata}: (" + ", ".join(f"%{{{n}:.3g}}" for n in names) + ")<br>says %{text}<extra></extra>",
    }
    residual = {"x": walk.loops, "y": walk.residual, "hovertemplate": "loop %{x}: %{y:.3g}<extra></extra>"}
    accuracy = {"x": walk.depths, "y": 100 * walk.accuracy, "hovertemplate": "T = %{x}: %{y:.1f} %<extra></extra>"}
    curve = {"mode": "lines", "line": {"color": PALETTE[0]}}
    mark = {"mode": "markers", "hoverinfo": "skip", "marker": {"color": _NOW, "size": 9}}
    ring = mark | {"marker": {"color": _NOW, "size": 14, "symbol": "circle-open", "line": {"width": 3}}}
    shown, hidden = [path | {"visible": True}, ring | {"visible": True}], [{"visible": False}] * 2
    return [*(hidden + shown if _solid(walk) else shown + hidden), residual | curve, mark, accuracy | curve, mark]


def _marks(walk: Walk, loop: int) -> dict[int, dict[str, list[float | None]]]:
    """Where the markers stand, by the number of their trace; nowhere in a panel that has no value at this loop count."""
    i = _place(walk, loop)
    residual = float(walk.residual[i])
    accuracy = dict(zip(walk.depths.tolist(), walk.accuracy.tolist(), strict=True)).get(loop, math.nan)
    y = [None if math.isnan(value) else value for value in (residual, 100 * accuracy)]
    here = {name: [float(value)] for name, value in zip(_AXES, walk.coordinates[i], strict=False)}
    return {3 if _solid(walk) else 1: here, 5: {"x": [loop], "y": y[:1]}, 7: {"x": [loop], "y": y[1:]}}


def _describe(figure: go.Figure, walk: Walk) -> None:
    """Axis titles and ranges, and what there is to say where the accuracy is missing."""
    layout, solid = figure.layout, _solid(walk)
    for k, (name, share) in enumerate(zip(_AXES, walk.explained, strict=False), start=1):
        title = f"PC {k} ({100 * share:.0f} % of {'var.' if solid else 'variance'})"
        (layout.scene if solid else layout)[f"{name}axis"].update({"title": {"text": title}, "autorange": True})
    layout.xaxis.visible = layout.yaxis.visible = not solid
    first, last = int(walk.loops[0]), int(walk.loops[-1])
    room = 0.02 * (last - first)
    layout.xaxis2.range = first - room, last + room
    layout.annotations[-1].text = "" if len(walk.depths) else "not measured: the run has no result.json"


def _solid(walk: Walk) -> bool:
    return walk.coordinates.shape[1] > 2


def _line(loop: int) -> dict[str, int]:
    return {"x0": loop, "x1": loop}


def _title(walk: Walk, loop: int) -> str:
    """What the model says at this loop count against the truth, wrong characters marked."""
    said = "".join(
        _visible(c) if c == right else f"<b>{_coloured(_visible(c), _WRONG)}</b>"
        for c, right in zip(walk.says[_place(walk, loop)], walk.truth, strict=True)
    )
    says = f"after {loop} loop{'s' * (loop != 1)}: says {_sum(walk.says[_place(walk, loop)])} (written {said})"
    says += f" · truth {_sum(walk.truth)} (written {_visible(walk.truth)})"
    where = escape(f"{walk.run} · {walk.problem} · {walk.point}")
    return f'{says}<br><span style="font-size:13px">{where}<br>{_SIGNS}<br>{_NOTE}</span>'


def _sum(written: str) -> str:
    """The number that an answer means, read from its last character to its first; a dash if it is none."""
    digits = written.removesuffix("§").removeprefix(" ")
    return digits[::-1] if digits.isdecimal() else "–"


def _place(walk: Walk, loop: int) -> int:
    found = np.flatnonzero(walk.loops == loop)
    if not len(found):
        raise ValueError(f"the walk holds loops {walk.loops[0]} to {walk.loops[-1]}, not {loop}")
    return int(found[0])


def _coloured(text: str, colour: str) -> str:
    return f'<span style="color:{colour}">{text}</span>'


def _visible(text: str) -> str:
    return escape(text.replace(" ", "␣"))

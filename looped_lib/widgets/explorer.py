"""The explorer: one problem's walk through the loops of a run, by widgets in JupyterLab.

    from looped_lib.widgets.explorer import Explorer
    Explorer()                                  # all runs under runs/ of the project

`Walks` computes what is shown, without widgets; `plots.walk_slider` draws the same as a figure that stays in a saved notebook.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from ipywidgets import HTML, Dropdown, HBox, IntRangeSlider, IntSlider, IntText, Layout, Play, Text, ToggleButtons, VBox, jslink
from jaxtyping import Float, Int
from threadpoolctl import ThreadpoolController

from looped_lib.core.files import read_json
from looped_lib.core.html import escape
from looped_lib.core.project import runs_folder
from looped_lib.dynamics.pca import project
from looped_lib.dynamics.trajectory import Trajectory, logit_lens, trajectory
from looped_lib.models.protocols import Looped
from looped_lib.plots.walk import Walk, move, redraw, walk_figure
from looped_lib.runs.folders import read_config, read_run
from looped_lib.tasks.addition import Addition
from looped_lib.tasks.problems import Problems, decode, from_texts
from looped_lib.tasks.task import Task
from looped_lib.training.trainer import load_model
from looped_lib.widgets.live import Live

MAX_BYTES = 2**28  # of states: the explorer holds a few trajectories, and PCA copies the one it looks at
_OFFERED = 20  # held-out problems in the list


@dataclass(frozen=True, eq=False)
class Run:
    """A model to walk through, and what was measured of it."""

    name: str
    """As shown."""
    model: Looped
    """Reads the characters of `task`."""
    max_len: int
    """Most characters it reads."""
    task: Task = field(default_factory=Addition)
    """What it was trained on."""
    held_out: tuple[str, ...] = ()
    """Some problems it was not trained on."""
    depths: Int[np.ndarray, "depth"] = field(default_factory=lambda: np.zeros(0, int))
    """Loop counts at which its accuracy was measured."""
    accuracy: Float[np.ndarray, "depth"] = field(default_factory=lambda: np.zeros(0))
    """Exact match at each of them, 0 to 1."""


def find_runs(root: str | Path | None = None) -> dict[str, Path]:
    """Run folders under `root` (default: runs/ of the project) by name: their path under it, `study/run`.

    Those with a checkpoint come first: records of runs on other machines have none.
    """
    root = (runs_folder() if root is None else Path(root)).resolve()
    folders = [path.parent for path in root.rglob("config.json") if _is_of_a_run(path)]
    folders.sort(key=lambda folder: (not any(folder.glob("checkpoints/step_*")), folder))
    return {folder.name if folder == root else folder.relative_to(root).as_posix(): folder for folder in folders}


def _is_of_a_run(config: Path) -> bool:
    """Whether a config.json is a run's, not another model's. A damaged one counts, so that opening it says what is wrong."""
    try:
        values = read_json(config)
    except (OSError, ValueError):
        return True
    return isinstance(values, dict) and "training" in values


def open_run(folder: Path, name: str) -> Run:
    """The run in `folder`: its newest checkpoint, some held-out problems, its accuracy by depth if it has a result.json.

    FileNotFoundError without a checkpoint, CheckpointError if it is damaged, ValueError if a JSON file is cut short.
    """
    config, model = read_config(folder), load_model(folder)
    accuracy = read_run(folder).accuracy if (folder / "result.json").exists() else {}
    depths, values = np.array(list(accuracy), int), np.array(list(accuracy.values()), float)
    return Run(name, model, config.model.max_len, config.data, _held_out(config.data), depths, values)


def read_problem(task: Task, text: str, max_len: int) -> Problems:
    """The problem that `text` means in `task`, with its true answer.

    ValueError as by `Task.parse`, and if the problem with its answer is longer than the `max_len` characters of the model.
    """
    if len(text) <= 10 * max_len:  # beyond, no number of spaces to leave out makes it shorter, and parsing may take long
        problem = from_texts([task.parse(text)], task.alphabet)
        if problem.inputs.shape[1] <= max_len:
            return problem
    raise ValueError(
        f"{text[:80]!r} with its answer is longer than the {max_len} characters that this model reads: write a shorter one"
    )


class Walks:
    """Walks of runs, without widgets. The last few runs and trajectories are kept; a run is read again when its files change."""

    def __init__(self):
        self._open = lru_cache(maxsize=4)(lambda folder, name, stamp: open_run(folder, name))
        self._travel = lru_cache(maxsize=2)(_travel)
        self._threads = ThreadpoolController()

    def run(self, folder: Path, name: str) -> Run:
        """The run in `folder` (see `open_run`)."""
        files = [folder / "config.json", folder / "result.json", *sorted(folder.glob("checkpoints/*/*"))]
        return self._open(folder, name, tuple((f, f.stat().st_mtime_ns) for f in files if f.exists()))

    def walk(
        self,
        run: Run,
        problem: str,
        loops: int = 100,
        between: tuple[int, int] | None = None,
        token: int | None = None,
        components: int = 2,
    ) -> Walk:
        """The walk of `problem` over `loops` loops, or the part `between` two loop counts.

        The path is that of the whole state (all positions), or of the state at position `token` if the problem is that long;
        the residual is the mean over positions, or that of the position. ValueError as by `read_problem`, by `trajectory` (no
        loops, or more than fit into MAX_BYTES) and by `project` (states not finite, or too few).
        """
        asked = read_problem(run.task, problem, run.max_len)
        text, prompt_len = asked.texts()[0], int(asked.prompt_len)
        first, last = between or (0, loops)
        token = token if token is not None and token < len(text) - 1 else None
        # One problem is little work: a second thread saves a quarter of the time alone, and costs forty times as much when the
        # two wait for each other because the browser or a training run is on the other core.
        with self._threads.limit(limits=1):
            path, says = self._travel(run, text, prompt_len, loops)
            part = path.between(first, last)
            projection = project(part, components, token)
        residual = part.residual[:, 0]
        return Walk(
            run=run.name,
            problem=text[:prompt_len],
            point="whole state" if token is None else f"state of {_position(text, token)}",
            loops=projection.loops,
            coordinates=projection.coordinates[:, 0],
            explained=projection.explained,
            residual=(residual.mean(-1) if token is None else residual[:, token]).double().numpy(),
            says=says[first : last + 1],
            truth=text[prompt_len:],
            depths=run.depths,
            accuracy=run.accuracy,
        )


class Explorer(VBox):
    """Controls over `walk_figure`: run, problem, whose state, 2-D or 3-D, loops computed, depth range, play over the loops.

    `root` is searched for runs (see `find_runs`). What cannot be shown is one message; the figure before it stays. `walk` is
    what is shown, `figure` where; None as long as nothing could be shown.
    """

    def __init__(self, root: str | Path | None = None, max_loops: int = 100):
        self._walks, self._settling = Walks(), False
        self.walk: Walk | None = None
        self.figure: go.FigureWidget | None = None
        found = find_runs(root)
        wide, label = Layout(width="320px"), {"description_width": "70px"}
        self.run = Dropdown(options=list(found.items()), description="run", layout=wide, style=label)
        self.held_out = Dropdown(options=[("", "")], description="held out", layout=wide, style=label)
        self.problem = Text(description="problem", placeholder="a problem", continuous_update=False, layout=wide, style=label)
        self.token = Dropdown(options=[("whole state", None)], description="state of", layout=wide, style=label)
        self.loops = IntText(max_loops, description="loops", continuous_update=False, layout=Layout(width="160px"), style=label)
        self.components = ToggleButtons(
            options=[("2-D", 2), ("3-D", 3)], style={"button_width": "60px"}, layout=Layout(flex="none")
        )
        self.depths = IntRangeSlider(min=0, max=1, description="shown", continuous_update=False, layout=wide, style=label)
        self.play = Play(interval=200, description="play over loops")
        self.loop = IntSlider(min=0, max=1, description="after loops", layout=Layout(width="560px"), style=label)
        self.message = HTML(layout=Layout(min_height="24px"))
        jslink((self.play, "value"), (self.loop, "value"))
        rows = [[self.run, self.held_out, self.problem], [self.token, self.loops, self.depths, self.components]]
        rows.append([self.play, self.loop])
        super().__init__([*(HBox(row, layout=Layout(flex_flow="row wrap")) for row in rows), self.message])
        for control in (self.run, self.problem, self.token, self.loops, self.depths, self.components):
            control.observe(self._redraw, "value")
        self.held_out.observe(self._choose, "value")
        self.loop.observe(self._move, "value")
        if found:
            self._redraw()
        else:
            self._say(f"no runs under {root or runs_folder()}: train some first, with `make tour` for example")

    def _choose(self, change: dict) -> None:
        if change["new"]:
            self.problem.value = change["new"]

    def _move(self, change: dict) -> None:
        if not self._settling and self.walk is not None:
            move(self.figure, self.walk, change["new"])

    def _redraw(self, change: dict | None = None) -> None:
        if self._settling:
            return
        try:
            run = self._walks.run(self.run.value, self.run.label)
            loops = self.loops.value
            between = self.depths.value if loops == self.depths.max else None
            problem = self.problem.value or "".join(run.held_out[:1])
            walk = self._walks.walk(run, problem, loops, between, self.token.value, self.components.value)
        except Exception as e:  # whatever it is: a traceback of a widget's callback would go where nobody looks
            self._say(str(e) or type(e).__name__)
            return
        self._settling = True
        try:
            self._settle(run, walk, loops)
            self._show(walk)
        finally:
            self._settling = False

    def _settle(self, run: Run, walk: Walk, loops: int) -> None:
        """Controls offer what there is."""
        remark = run.task.remark(walk.problem)
        self.message.value = remark and f'<p role="status" style="margin:0">{escape(remark)}</p>'
        self.problem.value = walk.problem
        invitation = "choose one" if run.held_out else "none: the run's data files are not here"
        offered = [(invitation, ""), *((problem, problem) for problem in run.held_out)]
        text = walk.problem + walk.truth
        positions = [("whole state", None), *((_position(text, i), i) for i in range(len(text) - 1))]
        _offer(self.held_out, offered, walk.problem if walk.problem in run.held_out else "")
        _offer(self.token, positions, self.token.value if self.token.value in range(len(text) - 1) else None)
        _bound(self.depths, 0, loops)
        self.depths.value = int(walk.loops[0]), int(walk.loops[-1])
        for control in (self.loop, self.play):
            _bound(control, int(walk.loops[0]), int(walk.loops[-1]))

    def _show(self, walk: Walk) -> None:
        self.walk = walk
        if self.figure is None:
            shown = Live(walk_figure(walk, self.loop.value))
            self.figure, self.children = shown.figure, (*self.children, shown)
        else:
            redraw(self.figure, walk, self.loop.value)

    def _say(self, text: str) -> None:
        self.message.value = text and f'<p role="alert" style="color:#b00020; margin:0">{escape(text)}</p>'


def _held_out(task: Task) -> tuple[str, ...]:
    """The first held-out problems, without their answers; none if the run's data files are not on this machine."""
    try:
        return tuple(task.held_out(_OFFERED).prompts)
    except (OSError, ValueError):
        return ()


def _travel(run: Run, text: str, prompt_len: int, loops: int) -> tuple[Trajectory, tuple[str, ...]]:
    """The trajectory of a problem with its answer, and the answer predicted after each loop count (see `Walk.says`)."""
    ids = from_texts([(text[:prompt_len], text[prompt_len:-1])], run.task.alphabet).inputs
    path = trajectory(run.model, ids, loops, max_bytes=MAX_BYTES)
    predicted = logit_lens(run.model, path).prediction[:, 0, prompt_len - 1 :]
    return path, tuple(decode(row, run.task.alphabet) for row in predicted.tolist())


def _position(text: str, i: int) -> str:
    return f"position {i}, {text[i]!r}"


def _offer(control: Dropdown, options: list[tuple], value: object) -> None:
    """New options with one of them chosen; nothing is sent if they are the old ones."""
    if list(control.options) != options:
        control.options = options
    control.value = value


def _bound(control: IntSlider | IntRangeSlider | Play, low: int, high: int) -> None:
    """New bounds in an order in which the lower never passes the upper; the value moves inside them."""
    control.max = max(control.max, high)
    control.min = low
    control.max = high

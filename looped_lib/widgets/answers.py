"""What the models wrote: the problems of an evaluation with each model's answers by loop count.

Browser("runs/ouro_evaluate/cpu")                       in JupyterLab: choose a task and a problem
overview(samples("runs/ouro_evaluate/cpu", "gsm8k"))    a table that stays in a saved notebook
"""

import html
from pathlib import Path

import pandas as pd
from ipywidgets import HTML, Checkbox, Dropdown, HBox, Layout, VBox
from pandas.io.formats.style import Styler

from looped_lib.ouro.evaluate.tables import samples
from looped_lib.plots.style import PALETTE
from looped_lib.tasks.word_problems import final_answer

_RIGHT, _WRONG = PALETTE[0], PALETTE[5]
_SHORT, _QUESTION = 16, 60  # characters of an answer in the table, of a question in a list
_BOX = "white-space:pre-wrap; max-height:18em; overflow:auto; margin:0; padding:6px; background:#f6f6f6; line-height:1.35"
_CELL = "text-align:left; vertical-align:top; padding:4px 10px; border-top:1px solid #ddd"


def tasks(out: str | Path) -> list[str]:
    """The tasks of which there are samples under `out`."""
    return sorted({path.name.removesuffix(".samples.jsonl") for path in Path(out).glob("*/T=*/*.samples.jsonl")})


def changing(table: pd.DataFrame) -> list[int]:
    """The problems that some model solves at one depth and not at another; `table` as from `tables.samples`."""
    grades = table.groupby(["problem", "model"])["right"].nunique()
    return sorted(set(grades[grades > 1].index.get_level_values("problem")))


def overview(table: pd.DataFrame, n: int = 5) -> Styler:
    """Each model's answers by loop count, ✓, ✗ or – (not graded one by one): of the first `n` problems that change with depth.

    If none do, of the first.
    """
    chosen = table[table["problem"].isin((changing(table) or sorted(table["problem"].unique()))[:n])]
    cell = [f"{_grade(right)[0]} {_short(answer)}" for right, answer in zip(chosen["right"], chosen["answer"], strict=True)]
    question = [f"{problem}: {_tail(text)}" for problem, text in zip(chosen["problem"], chosen["question"], strict=True)]
    grid = chosen.assign(cell=cell, question=question, target=chosen["target"].map(_short)).pivot(
        index=["problem", "question", "target", "model"], columns="depth", values="cell"
    )
    grid = grid.droplevel("problem").rename(columns=lambda depth: f"T = {depth}").fillna("").rename_axis(columns=None)
    styler = grid.style.map(lambda text: f"color:{_colour(text)}").format(escape="html")
    left = "text-align:left; vertical-align:top"
    styles = [{"selector": "td, th", "props": left}, {"selector": "td, .col_heading", "props": "white-space:nowrap"}]
    return styler.format_index(escape="html").set_table_styles(styles)


def page(table: pd.DataFrame, problem: int) -> str:
    """A problem as HTML: its prompt, the right answer, and a row per model and depth with the grade and the whole answer."""
    rows = table[table["problem"] == problem]
    first = rows.iloc[0]
    lines = [
        f'<tr><td style="{_CELL}">{html.escape(row.model)}</td><td style="{_CELL}">{row.depth}</td>'
        f'<td style="{_CELL}; color:{_colour(_grade(row.right))}; white-space:nowrap">{_grade(row.right)}</td>'
        f'<td style="{_CELL}"><div style="{_BOX}">{html.escape(row.answer)}</div></td></tr>'
        for row in rows.itertuples()
    ]
    head = "".join(f'<th style="text-align:left; padding:4px 10px">{name}</th>' for name in ("model", "loops", "grade", "answer"))
    return (
        f'<pre style="{_BOX}">{html.escape(first.question)}</pre><p>right answer: <b>{html.escape(first.target)}</b></p>'
        f'<table style="border-collapse:collapse; width:100%"><tr>{head}</tr>{"".join(lines)}</table>'
    )


class Browser(VBox):
    """Controls over `page`: a task, whether to list only problems that change with depth, a problem."""

    def __init__(self, out: str | Path):
        self._out, self._samples = Path(out), pd.DataFrame()
        wide = Layout(width="560px")
        self.task = Dropdown(options=tasks(out), description="task")
        self.only_changing = Checkbox(False, description="only problems that change with depth", indent=False)
        self.problem = Dropdown(options=[], description="problem", layout=wide)
        self.page = HTML()
        super().__init__([HBox([self.task, self.problem, self.only_changing], layout=Layout(flex_flow="row wrap")), self.page])
        self.task.observe(self._open, "value")
        self.only_changing.observe(self._list, "value")
        self.problem.observe(self._show, "value")
        if self.task.value is None:
            self.page.value = f"<p>no samples under {html.escape(str(out))}: evaluate first</p>"
        else:
            self._open()

    def _open(self, change: dict | None = None) -> None:
        self._samples = samples(self._out, self.task.value)
        self._list()

    def _list(self, change: dict | None = None) -> None:
        """Offer the problems, and stay at the one that is shown if it is among them."""
        questions, before = self._samples.drop_duplicates("problem").set_index("problem")["question"], self.problem.value
        listed = changing(self._samples) if self.only_changing.value else list(questions.index)
        self.problem.options = [(f"{i}: {_tail(questions[i])}", i) for i in listed]
        self.problem.value = before if before in listed else next(iter(listed), None)
        self._show()

    def _show(self, change: dict | None = None) -> None:
        if self.problem.value is None:
            self.page.value = "<p>no problem changes with depth</p>"
        else:
            self.page.value = page(self._samples, self.problem.value)


def _grade(right: float | None) -> str:
    return "–" if pd.isna(right) else "✓ right" if right else "✗ wrong"


def _colour(grade: str) -> str:
    return {"✓": _RIGHT, "✗": _WRONG}.get(grade[:1], "inherit")


def _short(answer: str) -> str:
    """What was answered in the end: the last boxed answer, or the end of the text."""
    last = final_answer(answer) or " ".join(answer.split())
    return last if len(last) <= _SHORT else f"…{last[-_SHORT:]}"


def _tail(question: str) -> str:
    """The end of the question, without the chat's marks around it."""
    turns = [turn.split("\n", 1)[-1] for turn in question.split("<|im_start|>")]
    asked = [turn.removesuffix("\n").removesuffix("<|im_end|>") for turn in turns if "<|im_end|>" in turn]
    text = " ".join((asked[-1] if asked else question).split())
    return text if len(text) <= _QUESTION else f"…{text[-_QUESTION:]}"

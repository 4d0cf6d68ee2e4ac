"""Browsing what models wrote: every control changes the page, answers are shown as they are, the table says right from wrong."""

import re

import pytest

from looped_lib.core.files import write_jsonl
from looped_lib.ouro.evaluate.tables import samples
from looped_lib.widgets import answers

ANSWERS = {  # task, model, depth: answers and grades of its problems
    ("sums", "base", 2): [("It is \\boxed{7}.", 1), ("<b>one & two</b>\nlines", 0), ("never", 0)],
    ("sums", "base", 4): [("It is \\boxed{7}.", 1), ("It is \\boxed{12}.", 1), ("never ever, not in a thousand years", 0)],
    ("sums", "stars", 2): [("It is \\boxed{8}.", 0), ("It is \\boxed{12}.", 1), ("never", 0)],
    ("other", "base", 4): [("x", 1)],
}
CHAT = "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\nQuestion {i}: <what>?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def out(tmp_path):
    for (task, model, depth), texts in ANSWERS.items():
        rows = [
            {
                "problem": i,
                "question": CHAT.format(i=i),
                "target": f"t{i}",
                "answer": answer,
                "grades": {"strict": 0, "acc": grade},
            }
            for i, (answer, grade) in enumerate(texts)
        ]
        write_jsonl(tmp_path / model / f"T={depth}" / f"{task}.samples.jsonl", rows)
    return tmp_path


@pytest.fixture
def browser(out):
    browser = answers.Browser(out)
    browser.task.value = "sums"
    return browser


def rows(page: str) -> list[tuple[str, ...]]:
    """model, loops, grade and answer of each row of a page."""
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page, re.S)
    return [tuple(re.sub(r"</?div[^>]*>", "", cell) for cell in cells[i : i + 4]) for i in range(0, len(cells), 4)]


def test_it_opens_on_the_first_problem_of_the_first_task(out):
    browser = answers.Browser(out)
    assert browser.task.options == ("other", "sums") and rows(browser.page.value) == [("base", "4", "✓ right", "x")]


def test_a_problem_is_shown_with_its_prompt_and_every_answer_as_it_is(browser):
    browser.problem.value = 1
    page = browser.page.value
    assert "&lt;|im_start|&gt;user\nQuestion 1: &lt;what&gt;?" in page and "right answer: <b>t1</b>" in page
    assert rows(page) == [
        ("base", "2", "✗ wrong", "&lt;b&gt;one &amp; two&lt;/b&gt;\nlines"),
        ("base", "4", "✓ right", "It is \\boxed{12}."),
        ("stars", "2", "✓ right", "It is \\boxed{12}."),
    ]


def test_problems_are_listed_by_the_end_of_their_question(browser):
    assert [label for label, _ in browser.problem.options] == [f"{i}: Question {i}: <what>?" for i in range(3)]


def test_only_those_that_change_with_depth(browser):
    browser.problem.value = 0
    browser.only_changing.value = True
    assert [i for _, i in browser.problem.options] == [1] and browser.problem.value == 1 and "Question 1" in browser.page.value
    browser.task.value = "other"
    assert browser.problem.value is None and "no problem changes with depth" in browser.page.value
    browser.only_changing.value = False
    assert browser.problem.value == 0 and rows(browser.page.value)


def test_the_problem_stays_when_the_list_changes(browser):
    browser.problem.value = 1
    browser.only_changing.value = True
    browser.only_changing.value = False
    assert browser.problem.value == 1 and "Question 1" in browser.page.value


def test_nothing_to_browse_is_said(tmp_path):
    assert "no samples under" in answers.Browser(tmp_path).page.value and answers.tasks(tmp_path) == []


def test_the_table_has_a_row_per_problem_and_model_and_says_right_from_wrong(out):
    table = samples(out, "sums")
    assert answers.changing(table) == [1]
    one = answers.overview(table).data
    assert list(one.columns) == ["T = 2", "T = 4"] and one.index.get_level_values("model").tolist() == ["base", "stars"]
    assert one.to_numpy().tolist() == [["✗ … & two</b> lines", "✓ 12"], ["✓ 12", ""]]
    page = answers.overview(table).to_html()
    assert "<b>" not in page and "&lt;what&gt;" in page and page.count("color: #D55E00") and page.count("color: #0072B2")


def test_the_table_takes_the_first_problems_if_none_changes(out):
    table = samples(out, "sums")
    same = table[table["depth"] == 2]
    assert len(answers.overview(same, n=2).data) == 4


def test_long_answers_show_their_end(out):
    table = samples(out, "sums")
    cell = answers.overview(table[table["problem"] == 2]).data.iloc[0, 1]
    assert cell == "✗ …a thousand years"


def test_the_grade_is_by_the_headline_metric(out):
    assert samples(out, "sums")["right"].sum() == 4  # by acc, not by strict

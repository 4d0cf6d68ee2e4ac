"""Numbers are graded by value, however they are written; and in plain text the first answer counts."""

from fractions import Fraction

import pytest

from looped_lib.ouro.evaluate.tasks.grading import boxed, first_answer, has_value, number

RIGHT = {
    "1234": [r"1{,}234", "1,234", r"1\,234", r"1,\!234", "1 234", "1234.0", "01234", r"\text{1,234 pens}", "1.234e3"],
    "1/2": [r"\frac{1}{2}", r"\dfrac12", "1/2", "0.5", ".5", r"50\%", r"x = \frac{1}{2}", r"\frac{3}{6}\text{ hours}"],
    "5": [
        "5 apples",
        "5 m",
        r"5\text{ kg}",
        r"\$5.00",
        r"5\$",
        "$5",
        "€5",
        r"\text{\$}5",
        "USD 5",
        "5.",
        r"\mathbf{5}",
        "3+2=5",
        r"\approx 5",
    ],
    "90": [
        r"90^\circ",
        r"90^{\circ}",
        "90°",
        r"90\text{ cm}^2",
        "90 cm^2",
        r"90~\mathrm{cm}",
        r"90\%",
        "90 percent",
        r"\approx 90",
    ],
    "-3/4": [r"-\frac{3}{4}", "-0.75", "\u22120.75", r"\left(-\frac{3}{4}\right)"],
    "144": ["12^2", r"1.44\times 10^2", r"\sqrt{20736}"],
}
WRONG = {
    "12": ["12^2", "12.5", "-12", "12/5", "12, 13", "12 or 13", r"12\pi", "12!", r"\{11,12\}"],
    "234": [r"1{,}234", "1,234", r"1\,234"],
    "2": [r"\frac{1}{2}", "2x", r"\sqrt{2}", "3%", "", "two"],
}


@pytest.mark.parametrize("value", RIGHT)
def test_equal_by_value_is_right(value):
    assert [said for said in RIGHT[value] if not has_value(said, Fraction(value))] == []


@pytest.mark.parametrize("value", WRONG)
def test_another_value_is_wrong(value):
    assert [said for said in WRONG[value] if has_value(said, Fraction(value))] == []


def test_the_box_counts_and_without_one_the_last_number():
    assert number({"Answer": "145.0"}, [r"3 and \boxed{145} and 7"]) == {"exact_match": 1.0}
    assert number({"answer": "1,234"}, [r"so 1{,}234 pens."]) == {"exact_match": 1.0}
    assert number({"answer": "2"}, [r"it is \frac{1}{2}"]) == number({"answer": "2"}, ["none"]) == {"exact_match": 0.0}
    assert number({"answer": "0.5"}, [r"it is \frac{1}{2}"]) == {"exact_match": 1.0}
    assert boxed({"answer": "7"}, [r"\boxed{7}"]) == {"exact_match": 1.0} != boxed({"answer": "7"}, [r"\boxed{7.0}"])


def test_the_first_answer_ends_where_its_box_closes():
    assert first_answer("It is \\boxed{\\frac{1}{2}}.\n\nTom has 3. \\boxed{3}") == "It is \\boxed{\\frac{1}{2}}"
    assert first_answer("a {b} c \\boxed{5") == "a {b} c \\boxed{5"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("3 + 4 = 7. The answer is 7.\n\nQuestion: Tom has 9 apples. The answer is 9.", "3 + 4 = 7. The answer is 7"),
        ("The answer is $1,234.50.\n\nTom has 3. \\boxed{3}", "The answer is $1,234.50"),
        ("Answer: 3 + 4 = 7\n\nTom has 5.", "Answer: 3 + 4 = 7"),
        ("#### 7\n\nTom has 3", "#### 7"),
        ("The answer is \\(\\frac{1}{2}\\). Tom has 4", "The answer is \\(\\frac{1}{2}"),
        ("The answer is **42** apples of 50.", "The answer is **42"),
        ("The answer is 3 times 5, so \\boxed{15}.", "The answer is 3 times 5, so \\boxed{15}"),  # said once more, in the box
        ("The answer is 7.\n\nFinal: \\boxed{7}\n\nTom \\boxed{8}", "The answer is 7.\n\nFinal: \\boxed{7}"),
        ("3 + 4 = 7\n**Problem 2:** 9", "3 + 4 = 7"),
        ("3 + 4 = 7.\n\nTom has 9 apples. How many are 10?", "3 + 4 = 7."),
        ("3 + 4 = 7\nTom has 2. Put the final answer in \\boxed{}.\n\\boxed{2}", "3 + 4 = 7"),
        ("Put the final answer in \\boxed{}.\n\\boxed{7}\n\\boxed{3}", "Put the final answer in \\boxed{}.\n\\boxed{7}"),
        ("Question: how many?\nAnswer: 7\n\nQuestion: and 8?\nAnswer: 9", "Question: how many?\nAnswer: 7"),
        ("He bought 3.\n\nThen 4 more: 3 + 4 = 7.", "He bought 3.\n\nThen 4 more: 3 + 4 = 7."),  # one answer in two paragraphs
    ],
)
def test_without_a_box_the_first_answer_ends_where_it_is_complete(text, first):
    assert first_answer(text) == first

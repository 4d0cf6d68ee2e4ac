"""How the tasks of this folder are graded: lm-eval calls these with a problem and the texts that were generated for it.

`number` grades by value. A plain number is compared as it stands, anything else is read by math-verify; what surrounds a number
without changing its value (units, currencies, degrees, words) is taken away first. A percentage counts as the number before its
sign, and as a hundredth of that.
"""

import re
from fractions import Fraction
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from looped_lib.tasks.word_problems import final_answer

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,2})?")
_FRACTION = r"-?\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}"
_IN_TEXT = re.compile(rf"{_FRACTION}|-?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?")  # an unboxed answer
_VALUE = rf"(?:{_FRACTION}|-?(?:\d[\d,{{}}\\!]*\d|\d)?(?:\.\d+)?(?<=\d)(?:/\d+)?)"  # the same, with its groups of digits
_ANNOUNCED = re.compile(
    rf"(?:\banswer\b[^.\n\d]*?(?:\b(?:is|are)\b|[:=])|####)[^\n\d]*?{_VALUE}(?:[^\n.=]*=[^\n\d]*?{_VALUE})*", re.IGNORECASE
)
_NEXT_PROBLEM = re.compile(
    r"\n\W*(?:question|problem|exercise|example|q|user|human)\b\s*\d*\W*[:.)]|\n[^\n]*\\boxed\{\s*\}", re.IGNORECASE
)
_QUESTION = re.compile(r"\n\s*\n(?=[^\n]*\?)")  # before a paragraph that asks
_GROUPS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:\{,\}|\\!,\\!|,\\!|\{\\,\}|\\[,!;: ]|[, ~\u00a0\u2009\u202f])\d{3}(?!\d))+")
_WORDS = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}(\s*\^\s*\{?\d+\}?)?")
_NOT_VALUE = re.compile(
    r"\\(?:left|right|displaystyle|quad|qquad|pounds|euro|degree)(?![a-zA-Z])|\^\s*\{?\s*\\circ\s*\}?|\\[$,;:! ]"
    r"|[$€£¥°~\u00a0\u2009\u202f]|\b(?:USD|EUR|GBP|Rs\.?)(?=\s*\d)"
)
_UNIT = re.compile(r"(?<=[\d}).])(?:\s*[a-zA-Z]{2,}|\s+[a-zA-Z])[a-zA-Z./\s-]*(?:\^\s*\{?\d+\}?)?$")
_PERCENT = re.compile(r"\\?%$|\s*\bper\s?cent$")


def boxed(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Right if the last \\boxed{} is the answer, character for character."""
    return {"exact_match": float(final_answer(results[0]) == doc["answer"])}


def number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Right if the last \\boxed{}, or without one the last number of the text, has the value of the answer."""
    answer = str(doc.get("answer", doc.get("Answer"))).replace(",", "")
    said = final_answer(results[0])
    if said is None:
        said = (_IN_TEXT.findall(_without_groups(results[0])) or [""])[-1]
    return {"exact_match": float(has_value(said, Fraction(answer)))}


def has_value(said: str, value: Fraction) -> bool:
    """Whether an answer, as LaTeX or plain text, is the number `value`."""
    text = _plain(said)
    without = _PERCENT.sub("", text).strip()
    values = [value] if without == text else [value, value * 100]
    return any(_equal(without, each) for each in values)


def first_answer(text: str) -> str:
    """A text up to the end of its first complete answer; all of it if there is none.

    A model that continues plain text, without turns, goes on after its answer to invent the next problem and solve that too. So
    the text ends where another problem is headed as such. In what is left the first \\boxed{} is the answer, unless one was
    announced before ("the answer is 7", "#### 7") and the box stands in another paragraph, after further numbers. Without either
    it ends where a later paragraph asks something.
    """
    text = _before(_NEXT_PROBLEM, text)
    box, announced = _first_box(text), _ANNOUNCED.search(text)
    if announced and box:
        between = text[announced.end() : box[0]]
        if "\n\n" in between and re.search(r"\d", between):
            box = None
    if box or announced:
        return text[: box[1] if box else announced.end()]
    return _before(_QUESTION, text)


def _before(pattern: re.Pattern[str], text: str) -> str:
    """The text before the first place of `pattern` that has a number before it."""
    return next((text[: m.start()] for m in pattern.finditer(text) if re.search(r"\d", text[: m.start()])), text)


def _first_box(text: str) -> tuple[int, int] | None:
    """Where the first \\boxed{} with something in it begins and ends."""
    for end in (place + 1 for place, c in enumerate(text) if c == "}"):
        if (final_answer(text[:end]) or "").strip():
            return text.rindex(r"\boxed{", 0, end), end
    return None


def first_answers(responses: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """`first_answer` of every response to every problem: a filter of lm-eval."""
    return [[first_answer(text) for text in texts] for texts in responses]


def _equal(text: str, value: Fraction) -> bool:
    if _NUMBER.fullmatch(text):
        return Fraction(text) == value
    found = parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], fallback_mode="no_fallback")
    exact = parse(rf"\boxed{{\frac{{{value.numerator}}}{{{value.denominator}}}}}", [LatexExtractionConfig()])
    return bool(found) and verify(exact[:1], found[:1])


def _plain(said: str) -> str:
    """An answer without what does not change its value: what follows the last equals sign, without groups of digits or units."""
    text = re.split(r"=|\\approx|\\sim(?![a-zA-Z])", _without_groups(said.replace("\u2212", "-")))[-1]
    text = _WORDS.sub(lambda m: m[1] + (m[2] or "") if re.search(r"\d", m[1]) else " ", text)
    text = _NOT_VALUE.sub(" ", text).strip().rstrip("\\.,;").strip()
    return _UNIT.sub("", text).strip() if not _PERCENT.search(text) else text


def _without_groups(text: str) -> str:
    """1,234 and LaTeX's 1{,}234 and 1\\,234 as 1234."""
    return _GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), text)

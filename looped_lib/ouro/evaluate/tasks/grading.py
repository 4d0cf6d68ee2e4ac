"""How the tasks of this folder are graded: lm-eval calls these with a problem and the texts that were generated for it."""

import re
from typing import Any

from looped_lib.tasks.word_problems import final_answer

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def boxed(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Right if the last \\boxed{} is the answer, character for character."""
    return {"exact_match": float(final_answer(results[0]) == doc["answer"])}


def number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Right if the number in the last \\boxed{}, or without one the last number of the text, equals the answer."""
    answer = doc.get("answer", doc.get("Answer"))
    return {"exact_match": float(_last_number(final_answer(results[0]) or results[0]) == float(str(answer).replace(",", "")))}


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None

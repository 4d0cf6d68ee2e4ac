"""The addition task: `1234+5678= 2196` and EOS: the sum stands with its digits reversed, least significant first.

Thirteen characters beside PAD and EOS: ten digits, `+`, `=`, space. Problems come from a seed (`generate_problems`) or from JSONL
files in the public format:

    {"num1": 1234, "num2": 5678, "sum": 6912, "expression": "1234 + 5678", "answer": 6912}

The loss counts what follows `=`: the space, the reversed sum and EOS.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int

from looped_lib.core import checks
from looped_lib.core.checks import ConfigError, shown
from looped_lib.core.files import read_jsonl, write_jsonl
from looped_lib.tasks.problems import PAD_AND_EOS, Problems, encode, from_texts
from looped_lib.tasks.task import Task

CHARACTERS = "0123456789+= " + PAD_AND_EOS
PLUS, EQUALS, SPACE, PAD, EOS = (CHARACTERS.index(c) for c in "+= Ʌ§")
LONGEST = 1000  # digits of a number in a file
MOST_DIGITS = 1000

Digits = Int[np.ndarray, "problem digit"]


@dataclass(frozen=True, kw_only=True)
class Addition(Task):
    """Addition problems: two JSONL files in the public format, or problems generated from a seed."""

    characters: ClassVar[str] = CHARACTERS.removesuffix(PAD_AND_EOS)
    train_file: str = ""
    """Training problems; empty generates `n_train` problems of `digits` digits."""
    test_file: str = ""
    """Held-out problems, all that the file has; empty generates `n_test` problems disjoint from the training ones."""
    digits: int = 4
    """Digits of each generated operand."""

    def __post_init__(self):
        super().__post_init__()
        checks.whole(self, 1, "digits", most=MOST_DIGITS)
        checks.text(self, "train_file", "test_file", empty=True)
        if bool(self.train_file) != bool(self.test_file):
            raise ConfigError("Addition.train_file and test_file go together: give both, or neither to generate the problems")

    def generate(self, n: int, seed: int, skip: int = 0) -> list[tuple[str, str]]:
        """The problems of `generate_problems` as texts."""
        problems = generate_problems(self.digits, n, seed, skip)
        pairs = zip(problems.texts(), problems.prompt_len.tolist(), strict=True)
        return [(text[:cut], text[cut:-1]) for text, cut in pairs]

    def problems(self, n: int, skip: int = 0) -> Problems:
        """As every task's, without texts on the way."""
        return generate_problems(self.digits, n, self.seed, skip)

    def training(self) -> Problems:
        """Those of `train_file`, or generated."""
        return load_jsonl(self.train_file) if self.train_file else super().training()

    def held_out(self, limit: int | None = None) -> Problems:
        """Those of `test_file`, or generated; the first `limit` of them if it is given."""
        return load_jsonl(self.test_file, limit=limit) if self.test_file else super().held_out(limit)

    def portable(self) -> "Addition":
        """With the names of the files alone."""
        return replace(self, train_file=Path(self.train_file).name, test_file=Path(self.test_file).name)

    def remark(self, prompt: str) -> str:
        """Of operands that have not `digits` digits."""
        if all(len(number) == self.digits for number in prompt.removesuffix("=").split("+")):
            return ""
        return f"this run was trained on numbers of {self.digits} digits: of others it has seen none"

    def parse(self, text: str) -> tuple[str, str]:
        """The problem `a+b=` with its true answer; the `=` may be left out and spaces do not count."""
        prompt = text.replace(" ", "").removesuffix("=") + "="
        encode(prompt, CHARACTERS)
        operands = prompt[:-1].split("+")
        if len(operands) != 2 or not all(a.isdecimal() and len(a) <= LONGEST for a in operands):
            raise ValueError(f"{shown(text)} is not a problem: write two whole numbers and a plus, such as 1234+5678=")
        return prompt, _answer(sum(map(int, operands)))


def generate_problems(digits: int, n: int, seed: int, skip: int = 0) -> Problems:
    """`n` different problems with operands of exactly `digits` digits (no leading zero).

    The seed fixes one endless list of different problems; `skip` leaves out its first entries, so sets that do not overlap in
    the list share no problem. ValueError if there are fewer than skip + n problems of that size.
    """
    return from_digits(*generate_operands(digits, n, seed, skip))


def generate_operands(digits: int, n: int, seed: int, skip: int = 0) -> tuple[Digits, Digits]:
    """The operands behind `generate_problems`, most significant digit first."""
    if digits < 10 and skip + n > (9 * 10 ** (digits - 1)) ** 2:
        raise ValueError(f"there are {(9 * 10 ** (digits - 1)) ** 2} problems of {digits} digits, fewer than {skip + n}")
    rng = np.random.default_rng([digits, seed])
    rows = np.empty((0, 2 * digits), dtype=np.int64)
    while len(rows) < skip + n:
        # One fixed block size: the list is the same however much of it is asked for.
        new = rng.integers(0, 10, size=(65_536, 2 * digits))
        new[:, [0, digits]] = rng.integers(1, 10, size=(65_536, 2))
        rows = np.concatenate([rows, new])
        whole = rows.astype(np.uint8).view(f"V{2 * digits}").ravel()  # a row as one value: sorted ten times as fast as columns
        first = np.unique(whole, return_index=True)[1]
        rows = rows[np.sort(first)]
    rows = rows[skip : skip + n]
    return rows[:, :digits], rows[:, digits:]


def from_digits(a: Digits, b: Digits) -> Problems:
    """Problems from operand digits (most significant first), for any number of digits."""
    n, digits = a.shape
    total = np.zeros((n, digits + 1), dtype=np.int64)  # reversed: column i holds the digit of 10^i
    carry = np.zeros(n, dtype=np.int64)
    for i in range(digits):
        carry, total[:, i] = np.divmod(a[:, -1 - i] + b[:, -1 - i] + carry, 10)
    total[:, digits] = carry

    def column(token: int) -> Digits:
        return np.full((n, 1), token)

    long = total[:, digits:] > 0  # the sum has one digit more than the operands
    ids = np.concatenate(
        [
            *(a, column(PLUS), b, column(EQUALS), column(SPACE), total[:, :digits]),
            *(np.where(long, total[:, digits:], EOS), np.where(long, EOS, PAD)),
        ],
        axis=1,
    )
    return Problems(torch.from_numpy(ids), torch.full((n,), 2 * digits + 2), CHARACTERS)


def load_jsonl(path: str | Path, limit: int | None = None) -> Problems:
    """Problems from a file in the public format. A bad line is a ValueError with file, line number and reason."""
    texts = [_parse(record, where) for where, record in islice(read_jsonl(path), limit)]
    if not texts:
        raise ValueError(f"{path}: no problems in the file")
    return from_texts(texts, CHARACTERS)


def save_jsonl(path: str | Path, a: Digits, b: Digits) -> None:
    """Write operands as a JSONL file in the public format."""
    write_jsonl(path, _records(a, b))


def _records(a: Digits, b: Digits) -> Iterator[dict[str, int | str]]:
    power = 10 ** np.arange(a.shape[1], dtype=object)[::-1]
    for x, y in zip((a @ power).tolist(), (b @ power).tolist(), strict=True):
        yield {"num1": x, "num2": y, "sum": x + y, "expression": f"{x} + {y}", "answer": x + y}


def _parse(record: Any, where: str) -> tuple[str, str]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: must be an object with num1, num2 and answer, got {type(record).__name__}")
    for name in ("num1", "num2", "answer"):
        value = record.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**LONGEST:
            raise ValueError(
                f"{where}: {name} must be a whole number of at least 0 and {LONGEST} digits at most, got {shown(value)}"
            )
    a, b, answer = record["num1"], record["num2"], record["answer"]
    for name in ("answer", "sum"):
        if record.get(name, answer) != a + b or isinstance(record.get(name), bool):
            raise ValueError(f"{where}: {name} is {shown(record[name])}, but {a} + {b} = {a + b}")
    expression = record.get("expression", f"{a} + {b}")
    if str(expression).replace(" ", "") != f"{a}+{b}":
        raise ValueError(f"{where}: expression {shown(expression)} is not {a} + {b}")
    return f"{a}+{b}=", _answer(answer)


def _answer(total: int) -> str:
    return " " + str(total)[::-1]

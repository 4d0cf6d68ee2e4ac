"""The addition task: `1234+5678= 2196` and EOS: the sum stands with its digits reversed, least significant first.

Fifteen characters: ten digits, `+`, `=`, space, PAD (`Ʌ`) and EOS (`§`). A set of problems is two tensors, made once; the
training loop only indexes them. Problems come from a seed (`generate_problems`) or from JSONL files in the public format:

    {"num1": 1234, "num2": 5678, "sum": 6912, "expression": "1234 + 5678", "answer": 6912}

The loss counts what follows `=`: the space, the reversed sum and EOS.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from looped_lib.core.checks import shown
from looped_lib.core.files import read_jsonl, write_jsonl

CHARACTERS = "0123456789+= Ʌ§"
PLUS, EQUALS, SPACE, PAD, EOS = (CHARACTERS.index(c) for c in "+= Ʌ§")
LONGEST = 1000  # digits of a number in a file
IGNORE = -100  # torch's ignore_index: positions outside the loss

Digits = Int[np.ndarray, "problem digit"]


@dataclass(frozen=True)
class Problems:
    """Tokenised problems: `ids` is the whole text, padded on the right; `prompt_len` counts the characters up to `=`."""

    ids: Int[Tensor, "problem char"]
    prompt_len: Int[Tensor, "problem"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor | slice) -> "Problems":
        return Problems(self.ids[index], self.prompt_len[index])

    def to(self, device: torch.device | str) -> "Problems":
        """The same problems on another device."""
        return Problems(self.ids.to(device), self.prompt_len.to(device))

    @property
    def inputs(self) -> Int[Tensor, "problem seq"]:
        """What the model reads: everything but the last character."""
        return self.ids[:, :-1]

    @property
    def labels(self) -> Int[Tensor, "problem seq"]:
        """What it must say at each input position: the next character of the answer, IGNORE elsewhere."""
        following = self.ids[:, 1:]
        position = torch.arange(1, self.ids.shape[1], device=self.ids.device)
        return torch.where((position < self.prompt_len[:, None]) | (following == PAD), IGNORE, following)

    def texts(self) -> list[str]:
        """The problems as strings, without PAD."""
        return ["".join(CHARACTERS[i] for i in row if i != PAD) for row in self.ids.tolist()]


def encode(text: str) -> list[int]:
    """Character ids of `text`; ValueError names the first character that is not in the vocabulary."""
    for place, c in enumerate(text):
        if c not in CHARACTERS:
            raise ValueError(f"{text!r}: character {c!r} at {place} is not one of {CHARACTERS!r}")
    return [CHARACTERS.index(c) for c in text]


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
    return Problems(torch.from_numpy(ids), torch.full((n,), 2 * digits + 2))


def load_jsonl(path: str | Path, limit: int | None = None) -> Problems:
    """Problems from a file in the public format. A bad line is a ValueError with file, line number and reason."""
    texts = [_parse(record, where) for where, record in islice(read_jsonl(path), limit)]
    if not texts:
        raise ValueError(f"{path}: no problems in the file")
    return from_texts(*zip(*texts, strict=True))


def from_texts(prompts: tuple[str, ...], answers: tuple[str, ...]) -> Problems:
    """Problems from prompts (`12+34=`) and answers (` 64`), any lengths; EOS and padding are added."""
    rows = [[*encode(p), *encode(a), EOS] for p, a in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return Problems(ids, torch.tensor([len(p) for p in prompts]))


def save_jsonl(path: str | Path, a: Digits, b: Digits) -> None:
    """Write operands as a JSONL file in the public format."""
    write_jsonl(path, _records(a, b))


def equal_lengths(problems: Problems, size: int) -> list[tuple[Tensor, Tensor, int]]:
    """(row numbers, ids without padding, prompt length): sorted problems of equal lengths, at most `size` together."""
    ids, prompt_len = problems.ids.cpu().numpy(), problems.prompt_len.cpu().numpy()
    length = (ids != PAD).sum(axis=1)
    order = np.lexsort([*ids.T[::-1], prompt_len, length])  # the last key counts most
    shapes = np.stack([length, prompt_len])[:, order]
    groups = np.split(order, np.flatnonzero((np.diff(shapes) != 0).any(axis=0)) + 1)
    chunks = []
    for group in groups:
        for rows in np.array_split(group, math.ceil(len(group) / size)):
            part = torch.from_numpy(rows).to(problems.ids.device)
            chunks.append((torch.from_numpy(rows), problems.ids[part, : length[rows[0]]], int(prompt_len[rows[0]])))
    return chunks


def alike(problems: Problems, n: int) -> Problems:
    """The first `n` problems (or all there are) of the length that is commonest, without padding."""
    lengths = (problems.ids != PAD).sum(dim=1)
    common = lengths.mode().values
    chosen = problems[(lengths == common).nonzero().flatten()[:n]]
    return Problems(chosen.ids[:, :common], chosen.prompt_len)


def exact_match(generated: Int[Tensor, "problem char_out"], problems: Problems) -> Bool[Tensor, "problem"]:
    """Grade greedy continuations: the answer and EOS must follow the prompt exactly; what comes after EOS does not count."""
    width = problems.ids.shape[1]
    if generated.shape[1] < width:
        raise ValueError(f"the continuation has {generated.shape[1]} characters; grading needs {width}")
    position = torch.arange(width, device=generated.device)
    free = (problems.ids == PAD) | (position < problems.prompt_len[:, None])
    return ((generated[:, :width] == problems.ids) | free).all(dim=1)


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
    return f"{a}+{b}=", " " + str(answer)[::-1]

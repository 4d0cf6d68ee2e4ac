"""Tokenised problems, as the training loop and the depth curves index them: a prompt and its answer, character by character.

The alphabet is the task's characters, then PAD (`Ʌ`) and EOS (`§`); a character's id is its place there. A set of problems is two
tensors, made once. The loss counts the answer and EOS, which follow the prompt.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

PAD_AND_EOS = "Ʌ§"
IGNORE = -100  # torch's ignore_index: positions outside the loss
_MOST_REPEATS = 100_000  # draws in a row that were there before


@dataclass(frozen=True)
class Problems:
    """Tokenised problems: `ids` is the whole text, padded on the right; `prompt_len` counts the characters of the prompt."""

    ids: Int[Tensor, "problem char"]
    prompt_len: Int[Tensor, "problem"]
    alphabet: str
    """All characters by id, PAD and EOS last."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor | slice) -> "Problems":
        return Problems(self.ids[index], self.prompt_len[index], self.alphabet)

    def to(self, device: torch.device | str) -> "Problems":
        """The same problems on another device."""
        return Problems(self.ids.to(device), self.prompt_len.to(device), self.alphabet)

    @property
    def pad(self) -> int:
        """Id of PAD."""
        return len(self.alphabet) - 2

    @property
    def inputs(self) -> Int[Tensor, "problem seq"]:
        """What the model reads: everything but the last character."""
        return self.ids[:, :-1]

    @property
    def labels(self) -> Int[Tensor, "problem seq"]:
        """What it must say at each input position: the next character of the answer, IGNORE elsewhere."""
        following = self.ids[:, 1:]
        position = torch.arange(1, self.ids.shape[1], device=self.ids.device)
        return torch.where((position < self.prompt_len[:, None]) | (following == self.pad), IGNORE, following)

    @property
    def prompts(self) -> list[str]:
        """The prompts as strings."""
        return [text[:n] for text, n in zip(self.texts(), self.prompt_len.tolist(), strict=True)]

    def texts(self) -> list[str]:
        """The problems as strings, without PAD."""
        return [decode(row, self.alphabet).replace(PAD_AND_EOS[0], "") for row in self.ids.tolist()]


def encode(text: str, alphabet: str) -> list[int]:
    """Character ids of `text`; ValueError names the first character that is not in the alphabet."""
    for place, c in enumerate(text):
        if c not in alphabet:
            raise ValueError(f"{text!r}: character {c!r} at {place} is not one of {alphabet!r}")
    return [alphabet.index(c) for c in text]


def decode(ids: Sequence[int], alphabet: str) -> str:
    """The text of character ids; `?` for one that is not in the alphabet."""
    return "".join(alphabet[i] if i < len(alphabet) else "?" for i in ids)


def from_texts(texts: Sequence[tuple[str, str]], alphabet: str) -> Problems:
    """Problems from pairs of prompt (`12+34=`) and answer (` 64`), any lengths; EOS and padding are added."""
    pad, eos = len(alphabet) - 2, len(alphabet) - 1
    rows = [[*encode(prompt, alphabet), *encode(answer, alphabet), eos] for prompt, answer in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    return Problems(ids, torch.tensor([len(prompt) for prompt, _ in texts]), alphabet)


def distinct(draw: Callable[[random.Random], tuple[Any, Any]], n: int, seed: int, skip: int = 0) -> list[tuple[Any, Any]]:
    """Entries skip .. skip + n - 1 of the endless list of different pairs that `draw` makes with random numbers of the seed.

    Two pairs are different if their first parts are: parts of the list that do not overlap share no problem. ValueError if
    `draw` has no more of them.
    """
    rng, found, repeats = random.Random(seed), {}, 0
    while len(found) < skip + n:
        before = len(found)
        found.setdefault(*draw(rng))
        repeats = 0 if len(found) > before else repeats + 1
        if repeats > _MOST_REPEATS:
            raise ValueError(f"there seem to be {len(found)} different problems, fewer than {skip + n}")
    return list(islice(found.items(), skip, None))


def equal_lengths(problems: Problems, size: int) -> list[tuple[Tensor, Tensor, int]]:
    """(row numbers, ids without padding, prompt length): sorted problems of equal lengths, at most `size` together."""
    ids, prompt_len = problems.ids.cpu().numpy(), problems.prompt_len.cpu().numpy()
    length = (ids != problems.pad).sum(axis=1)
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
    lengths = (problems.ids != problems.pad).sum(dim=1)
    common = lengths.mode().values
    chosen = problems[(lengths == common).nonzero().flatten()[:n]]
    return Problems(chosen.ids[:, :common], chosen.prompt_len, problems.alphabet)


def exact_match(generated: Int[Tensor, "problem char_out"], problems: Problems) -> Bool[Tensor, "problem"]:
    """Grade greedy continuations: the answer and EOS must follow the prompt exactly; what comes after EOS does not count."""
    width = problems.ids.shape[1]
    if generated.shape[1] < width:
        raise ValueError(f"the continuation has {generated.shape[1]} characters; grading needs {width}")
    position = torch.arange(width, device=generated.device)
    free = (problems.ids == problems.pad) | (position < problems.prompt_len[:, None])
    return ((generated[:, :width] == problems.ids) | free).all(dim=1)

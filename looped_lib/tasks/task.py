"""What a model learns: a task of one's own is a dataclass under `Task` with its characters, `generate` and `parse`.

    @dataclass(frozen=True, kw_only=True)
    class Copy(Task):
        characters: ClassVar[str] = "ab>"

        def generate(self, n, seed, skip=0):
            return distinct(draw, n, seed, skip)  # pairs (prompt, answer), such as ("abba>", "abba")

        def parse(self, text):
            return text, text.removesuffix(">")  # ValueError if the text is no problem

It is then trained on, measured at every depth, carried and explored as addition is.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from looped_lib.core import checks
from looped_lib.core.checks import ConfigError
from looped_lib.core.kinds import Kind
from looped_lib.tasks.problems import PAD_AND_EOS, Problems, from_texts

MOST_PROBLEMS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Task(Kind, ABC, unnamed="Addition"):
    """Problems whose prompts and answers are texts of `characters`. A config names it by its class (see `kinds`)."""

    characters: ClassVar[str]
    """Every character of prompts and answers once."""
    n_train: int = 95_000
    """Generated training problems."""
    n_test: int = 5_000
    """Generated held-out problems, disjoint from the training ones."""
    seed: int = 0
    """Seed of the generated problems."""

    def __post_init__(self):
        checks.whole(self, 1, "n_train", "n_test", most=MOST_PROBLEMS)
        checks.whole(self, 0, "seed", most=checks.MOST_SEED)
        if len(set(self.alphabet)) < len(self.alphabet):
            raise ConfigError(f"{type(self).__name__}.characters must be different, and none of {PAD_AND_EOS!r}")

    @abstractmethod
    def generate(self, n: int, seed: int, skip: int = 0) -> Sequence[tuple[str, str]]:
        """Entries skip .. skip + n - 1 of an endless list of different problems that the seed fixes, as (prompt, answer)."""

    @abstractmethod
    def parse(self, text: str) -> tuple[str, str]:
        """The prompt that a user means by `text`, and its true answer. ValueError says what would be right."""

    def remark(self, prompt: str) -> str:
        """What to know of a problem unlike those of the training; nothing if it is like them."""
        return ""

    def portable(self) -> "Task":
        """The task with its data files by name alone: on another machine they lie elsewhere."""
        return self

    @property
    def alphabet(self) -> str:
        """The characters by id, PAD and EOS last."""
        return self.characters + PAD_AND_EOS

    def problems(self, n: int, skip: int = 0) -> Problems:
        """What `generate` makes of the task's seed, tokenised."""
        return from_texts(self.generate(n, self.seed, skip), self.alphabet)

    def training(self) -> Problems:
        """The training problems."""
        return self.problems(self.n_train)

    def held_out(self, limit: int | None = None) -> Problems:
        """The held-out problems, the first `limit` of them if it is given; the training problems are not made."""
        return self.problems(self.n_test if limit is None else min(limit, self.n_test), skip=self.n_train)

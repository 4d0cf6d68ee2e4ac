"""What an evaluation measures: its settings, and its cells with their places. (What it measured: `tables`.)

A cell is a checkpoint at a loop count, or with an exit, on a task.

    OUT/<checkpoint>/T=<depth>/<task>.json            metrics, time, settings, provenance; written when the cell is done
    OUT/<checkpoint>/T=<depth>/<task>.samples.jsonl   question, answer and grades of every problem
    OUT/<checkpoint>/T=<depth>/<task>.failed.json     why it failed, if it did
    OUT/<checkpoint>/<criterion>=<threshold>,T=<most loops>/   the same of an exit, with the mean loops a token
    OUT/<checkpoint>/engine/                          the engines' log, and what the last one was asked

The seconds of a cell are its share of what was computed for several depths at once, and its own.
"""

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from looped_lib.core import checks
from looped_lib.core.checks import ConfigError
from looped_lib.core.files import read_record
from looped_lib.ouro.evaluate.stops import Stop, loops_of
from looped_lib.ouro.finetune.config import SYSTEM_PROMPT
from looped_lib.ouro.model.exits import CRITERIA, Exit

Backend = Literal["vllm", "transformers"]
Dtype = Literal["bfloat16", "float32"]
REMEASURE = "delete it to measure the cell again"
_MEASURED = {"model": str, "task": str, "depth": int, "metrics": dict, "samples": int, "seconds": int | float}
_MEASURED |= {"settings": dict, "weights": str, "tokens_per_sec": int | float | None}
# Other settings, such as the batch size, say how a cell is measured, not what.
_DECIDES = "backend system_prompt chat_template fewshot max_new_tokens temperature limit dtype seed".split()
_OF_CONFIG = set("model max_model_len max_gen_toks dtype seed hf_overrides worker_extension_cls".split())  # not for `engine`


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What to measure. The defaults are the paper's: zero-shot, chat template and system prompt, greedy."""

    checkpoints: dict[str, str] = field(default_factory=lambda: {"base": "ByteDance/Ouro-1.4B"})
    """Folders or names of the hub, by the name to show: models, or LoRA adapters, which are measured on their base."""
    tasks: tuple[str, ...] = ("gsm8k", "minerva_math500", "asdiv", "svamp", "amc23")
    """Tasks of lm-eval, of this package (svamp, amc23, word_problems) or of `task_folder`."""
    depths: tuple[int, ...] = (4, 8)
    """Loop counts."""
    exits: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Exits to measure too, with transformers: thresholds by criterion (`model.exits`), within the greatest of `depths` loops."""
    backend: Backend = "vllm"
    """Engine: vLLM, or transformers' generate."""
    system_prompt: str = SYSTEM_PROMPT
    """Opens every conversation; empty leaves it out."""
    chat_template: bool = True
    """Write questions as the user's turn of a chat."""
    fewshot: int = 0
    """Solved examples before the question."""
    max_len: int = 4096
    """Tokens of question and answer together; a question that leaves no room for an answer is an error."""
    max_new_tokens: int = 2048
    """Tokens of an answer."""
    temperature: float = 0.0
    """0 is greedy. A task whose file samples at another one is refused."""
    limit: int = 0
    """Problems of each task, the first ones; 0 takes all."""
    dtype: Dtype = "bfloat16"
    """Precision of weights and products."""
    batch_size: int = 8
    """Problems the transformers backend answers at once; vLLM fills its own batches."""
    engine: dict[str, Any] = field(default_factory=dict)
    """More arguments of vllm.LLM, such as gpu_memory_utilization, tensor_parallel_size, enforce_eager."""
    task_folder: str = ""
    """A folder with more task files. They are programs: what they name with !function is run, so give only files you trust."""
    data: dict[str, str] = field(default_factory=dict)
    """Local copies of a task's data, for machines without a network: a folder as the hub has it, or a .jsonl or .parquet file."""
    seed: int = 0
    """Of sampling, and of the choice of few-shot examples."""

    def __post_init__(self):
        checks.choice(self, backend=Backend, dtype=Dtype)
        checks.whole(self, 0, "fewshot", "limit", "seed")
        checks.whole(self, 1, "max_new_tokens", "batch_size")
        checks.whole(self, self.max_new_tokens + 1, "max_len")
        checks.number(self, 0, 2, "temperature")
        checks.flag(self, "chat_template")
        checks.text(self, "system_prompt", "task_folder", empty=True)
        if not _table(self.checkpoints, str) or not all(re.fullmatch(r"\w[\w.+-]*", name) for name in self.checkpoints):
            checks.fail(self, "checkpoints", "folders or names of the hub, by names of letters, digits and any of _ . + -")
        if not _different(self.tasks, str):
            checks.fail(self, "tasks", "a list of the names of one or more different tasks")
        for task in self.tasks:
            if not re.fullmatch(r"\w[^/\\\x00-\x1f]*", task):
                raise ConfigError(f"EvaluationConfig.tasks must be names, not paths (files are named by them), got {task!r}")
        if not _different(self.depths, int) or min(self.depths) < 1:
            checks.fail(self, "depths", "a list of one or more different loop counts of at least 1")
        if not _table(self.exits, tuple | list, empty=True) or not all(map(_are_thresholds, self.exits, self.exits.values())):
            checks.fail(self, "exits", f"lists of different thresholds above 0 (of the gate: below 1) by {', '.join(CRITERIA)}")
        if self.exits and (self.backend != "transformers" or self.temperature > 0):
            raise ConfigError("EvaluationConfig.exits needs the transformers backend, which vLLM is not, and temperature 0")
        if not _table(self.engine, object, empty=True):
            checks.fail(self, "engine", "arguments of vllm.LLM by their names")
        if not _table(self.data, str, empty=True):
            checks.fail(self, "data", "files or folders by the names of tasks")
        if unknown := sorted(set(self.data) - set(self.tasks)):
            raise ConfigError(f"EvaluationConfig.data is by task, but {', '.join(unknown)} is not among the tasks")
        if self.engine and self.backend != "vllm":
            raise ConfigError("EvaluationConfig.engine has arguments of vLLM, but the backend is transformers")
        if taken := sorted(set(self.engine) & _OF_CONFIG):
            raise ConfigError(f"EvaluationConfig.engine may not have {', '.join(taken)}: other fields of the config say it")

    @property
    def stops(self) -> list[Stop]:
        """Loop counts and exits."""
        most = max(self.depths)
        return [*self.depths, *(Exit(by, float(x), most) for by, thresholds in self.exits.items() for x in thresholds)]

    @property
    def one_engine(self) -> bool:
        """Whether one engine measures all loop counts of a checkpoint: vLLM's can where it is not compiled, and one replica."""
        eager = self.engine.get("enforce_eager") is True and self.engine.get("data_parallel_size", 1) == 1
        return self.backend == "transformers" or eager

    def decisive(self) -> dict[str, Any]:
        """The settings that a cell's numbers depend on, beside checkpoint, task and depth."""
        return {name: getattr(self, name) for name in _DECIDES}


def _table(value: Any, of: type, empty: bool = False) -> bool:
    """Whether a value is a table of texts, not empty, to values of a type."""
    named = isinstance(value, dict) and all(isinstance(key, str) and isinstance(x, of) for key, x in value.items())
    return named and (empty or bool(value))


def _different(value: Any, of: type) -> bool:
    """Whether a value is a list of one or more different values of a type."""
    return isinstance(value, tuple | list) and bool(value) and all(type(x) is of for x in value) and len({*value}) == len(value)


def _are_thresholds(by: str, values: Any) -> bool:
    """Whether values are thresholds of a criterion."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf for x in values)
    return by in CRITERIA and numbers and 0 < len(values) == len(set(values)) and (by != "gate" or max(values) < 1)


@dataclass(frozen=True)
class Cell:
    """One checkpoint at one loop count, or with one exit, on one task, and its place."""

    checkpoint: str
    stop: Stop
    task: str
    out: Path

    @property
    def place(self) -> str:
        """The name of the folder that it shares with the other tasks."""
        return f"{self.stop},T={self.stop.loops}" if isinstance(self.stop, Exit) else f"T={self.stop}"

    @property
    def folder(self) -> Path:
        """That folder."""
        return self.out / self.checkpoint / self.place

    @property
    def what(self) -> dict[str, Any]:
        """What it is of, as its files say it. `depth` is the most loops."""
        exit = {"exit": self.stop.by, "threshold": self.stop.threshold} if isinstance(self.stop, Exit) else {}
        return {"model": self.checkpoint, "task": self.task, "depth": loops_of(self.stop), **exit}

    @property
    def engine(self) -> Path:
        """The folder of the engines that measure the checkpoint."""
        return self.folder.parent / "engine"

    @property
    def result(self) -> Path:
        """Where the numbers are, once it is done."""
        return self.folder / f"{self.task}.json"

    @property
    def samples(self) -> Path:
        """Where the problems and answers are."""
        return self.folder / f"{self.task}.samples.jsonl"

    @property
    def failure(self) -> Path:
        """Where the reason is, if it failed."""
        return self.folder / f"{self.task}.failed.json"

    @property
    def open(self) -> bool:
        """Neither done nor failed."""
        return not self.result.exists() and not self.failure.exists()


def cells(config: EvaluationConfig, out: Path) -> Iterator[Cell]:
    """All cells of an evaluation, those of a checkpoint at a stop together."""
    for checkpoint in config.checkpoints:
        for stop in config.stops:
            for task in config.tasks:
                yield Cell(checkpoint, stop, task, out)


def read_cell(path: Path) -> dict[str, Any]:
    """What was measured in a cell. ValueError names the file and the field that is not what it should be."""
    cell = read_record(path, _MEASURED, REMEASURE)
    pairs = [*cell["metrics"].values(), [cell["seconds"], cell["tokens_per_sec"]]]
    if not all(isinstance(pair, list) and len(pair) == 2 and _number(pair[0]) for pair in pairs):
        raise ValueError(f"{path}: metrics must have a value and a standard error each; {REMEASURE}")
    if not all(second is None or _number(second) for _, second in pairs):
        raise ValueError(f"{path}: standard errors and tokens_per_sec must be numbers or null; {REMEASURE}")
    return cell


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < sys.float_info.max

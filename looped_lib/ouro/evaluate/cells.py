"""What an evaluation measures, and what it measured: its settings, its cells, and their results as tables.

A cell is a checkpoint at a loop count on a task.

    OUT/<checkpoint>/T=<depth>/<task>.json            metrics, time, settings, provenance; written when the cell is done
    OUT/<checkpoint>/T=<depth>/<task>.samples.jsonl   question, answer and grades of every problem
    OUT/<checkpoint>/T=<depth>/<task>.failed.json     why it failed, if it did
    OUT/<checkpoint>/engine/                          the engines' log, and what the last one was asked

The seconds of a cell are its share of what was computed for several depths at once, and its own.
"""

import glob
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from looped_lib.core import checks
from looped_lib.core.checks import ConfigError
from looped_lib.core.files import read_json
from looped_lib.ouro.finetune.config import SYSTEM_PROMPT

Backend = Literal["vllm", "transformers"]
Dtype = Literal["bfloat16", "float32"]
# The accuracy of a task is the first of these that it has, or else its first metric that is a share and not one of ERRORS.
HEADLINES = ("math_verify", "exact_match (flexible-extract)", "exact_match", "acc")
ERRORS = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"}  # less is better
REMEASURE = "delete it to measure the cell again"
# Other settings, such as the batch size, say how a cell is measured, not what.
_DECIDES = "backend system_prompt chat_template fewshot max_new_tokens temperature limit dtype seed".split()
_OF_CONFIG = {"model", "max_model_len", "max_gen_toks", "dtype", "seed", "hf_overrides"}  # not for `engine`


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What to measure. The defaults are the paper's: zero-shot, chat template and system prompt, greedy."""

    checkpoints: dict[str, str] = field(default_factory=lambda: {"base": "ByteDance/Ouro-1.4B"})
    """Folders or names of the hub, by the name to show: models, or LoRA adapters, which are measured on their base."""
    tasks: tuple[str, ...] = ("gsm8k", "minerva_math500", "asdiv", "svamp", "amc23")
    """Tasks of lm-eval, of this package (svamp, amc23, word_problems) or of `task_folder`."""
    depths: tuple[int, ...] = (4, 8)
    """Loop counts."""
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


@dataclass(frozen=True)
class Cell:
    """One checkpoint at one loop count on one task, and its place."""

    checkpoint: str
    depth: int
    task: str
    folder: Path

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
    """All cells of an evaluation, those of a checkpoint at a depth together."""
    for checkpoint in config.checkpoints:
        for depth in config.depths:
            for task in config.tasks:
                yield Cell(checkpoint, depth, task, out / checkpoint / f"T={depth}")


def results(out: str | Path) -> pd.DataFrame:
    """A row per metric of every cell under `out`: model, task, depth, metric, value, stderr, samples, seconds, tokens_per_sec."""
    columns = ["model", "task", "depth", "metric", "value", "stderr", "samples", "seconds", "tokens_per_sec"]
    rows = []
    for path in sorted(Path(out).glob("*/T=*/*.json")):
        if not path.name.endswith(".failed.json"):
            cell = read_json(path, REMEASURE)
            for metric, (value, stderr) in cell["metrics"].items():
                rows.append({**cell, "metric": metric, "value": value, "stderr": stderr})
    table = pd.DataFrame(rows, columns=columns).astype({"value": float, "stderr": float, "tokens_per_sec": float})
    return table.sort_values(["model", "task", "depth"], kind="stable", ignore_index=True)


def headlines(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `results` with the accuracy of each task (see HEADLINES). Tasks without one (perplexities) have no row."""
    shares = table[~table["metric"].str.split(" ").str[0].isin(ERRORS)]
    inside = shares["value"].between(0, 1).groupby([shares["task"], shares["metric"]]).transform("all")
    shares = shares[inside.astype(bool)]
    chosen = {}
    for task, metrics in shares.groupby("task", sort=False)["metric"]:
        chosen[task] = next((m for m in HEADLINES if m in set(metrics)), metrics.iloc[0])
    return shares[shares["metric"] == shares["task"].map(chosen)].reset_index(drop=True)


def without_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `results` of tasks that have no accuracy: perplexities, for instance."""
    return table[~table["task"].isin(headlines(table)["task"])].reset_index(drop=True)


def failures(out: str | Path) -> pd.DataFrame:
    """A row per cell under `out` that failed: model, task, depth, reason."""
    found = [read_json(path, "delete it") for path in sorted(Path(out).glob("*/T=*/*.failed.json"))]
    return pd.DataFrame(found, columns=["model", "task", "depth", "reason"])


def record(out: str | Path) -> dict[str, Any]:
    """All of `results` and `failures` as JSON: as tables, and each task's headline by model and task at each of `depths`."""
    table, failed = results(out), failures(out)
    grid = headlines(table).set_index(["model", "task", "depth"])
    depths = sorted(int(depth) for depth in table["depth"].unique())
    names = {f"{model}, {task}": (model, task) for model, task, _ in grid.index}
    return {
        "depths": depths,
        "accuracy": {name: _plain(grid.loc[key, "value"].reindex(depths)) for name, key in names.items()},
        "seconds": {name: float(grid.loc[key, "seconds"].sum()) for name, key in names.items()},
        "table": [dict(zip(table, row, strict=True)) for row in zip(*map(_plain, (table[c] for c in table)), strict=True)],
        "failures": failed.to_dict("records"),
    }


def samples(out: str | Path, task: str) -> pd.DataFrame:
    """A row per problem of a task, model and depth: question, target, answer, and right, the answer's grade by the headline.

    `right` is None where answers are not graded one by one, as in perplexities.
    """
    rows = []
    for path in Path(out).glob(f"*/T=*/{glob.escape(task)}.samples.jsonl"):
        where = {"model": path.parent.parent.name, "depth": int(path.parent.name.removeprefix("T="))}
        rows += [{**where, **json.loads(line)} for line in path.read_text(encoding="utf-8").splitlines()]
    if rows:
        metric = next((m for m in (*HEADLINES, *rows[0]["grades"]) if m in rows[0]["grades"]), None)
        rows = [{**row, "right": row["grades"].get(metric)} for row in rows]
    table = pd.DataFrame(rows, columns=["model", "depth", "problem", "question", "target", "answer", "right"])
    return table.sort_values(["problem", "model", "depth"], ignore_index=True)


def drops(table: pd.DataFrame) -> pd.DataFrame:
    """By model and depth the mean over tasks, and how far it is below the model's own greatest: model, depth, value, drop.

    `table` as from `headlines`. Only depths at which a model was measured on all of its tasks count: other means would not be of
    the same tasks.
    """
    means = table.groupby(["model", "depth"], sort=False).agg(value=("value", "mean"), n=("task", "nunique")).reset_index()
    means = means[means["n"] == means.groupby("model")["n"].transform("max")].drop(columns="n").reset_index(drop=True)
    return means.assign(drop=means.groupby("model")["value"].transform("max") - means["value"])


def _plain(column: pd.Series) -> list[Any]:
    """Its values as JSON has them, None where there is none."""
    return column.astype(object).where(column.notna(), None).tolist()

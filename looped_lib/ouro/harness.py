"""Accuracy of Ouro checkpoints by loop count on benchmarks, by EleutherAI's lm-eval harness.

    python -m looped_lib.ouro.harness EVALUATION.json OUT

A cell is a checkpoint at a loop count on a task. One engine serves all tasks of a checkpoint at a depth, so that weights are
loaded once per depth, in a process of its own (`harness_worker`): its memory is free when it ends, and a crash costs the cell it
was at.

    OUT/<checkpoint>/T=<depth>/<task>.json            what was measured, and with which settings; written when the cell is done
    OUT/<checkpoint>/T=<depth>/<task>.samples.jsonl   question, answer and grade of every problem
    OUT/<checkpoint>/T=<depth>/<task>.failed.json     why it failed, if it did
    OUT/<checkpoint>/T=<depth>/engine.log             what the engine said

A rerun measures only what is not there. `results(OUT)` is all of it as one tidy table.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from tqdm.auto import tqdm
from transformers import AutoConfig

from looped_lib import checks
from looped_lib.checks import ConfigError
from looped_lib.config import from_dict, to_dict
from looped_lib.files import read_json, write_json
from looped_lib.ouro.config import SYSTEM_PROMPT
from looped_lib.ouro.configuration import OuroConfig

Backend = Literal["vllm", "transformers"]
Dtype = Literal["auto", "float32", "bfloat16"]
TASKS = Path(__file__).parent / "tasks"  # the task files that lm-eval lacks
_NOT_OF_A_CELL = ("checkpoints", "tasks", "depths", "data")  # the other settings must be those a cell was measured with


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What to measure. The defaults are the paper's: zero-shot, chat template and system prompt, greedy."""

    checkpoints: dict[str, str] = field(default_factory=lambda: {"base": "ByteDance/Ouro-1.4B"})
    """Folders or names of the hub, by the name to show."""
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
    """Tokens of question and answer together."""
    max_new_tokens: int = 2048
    """Tokens of an answer."""
    temperature: float = 0.0
    """0 is greedy."""
    limit: int = 0
    """Problems of each task, the first ones; 0 takes all."""
    dtype: Dtype = "auto"
    """Precision of the weights; auto is the checkpoint's own."""
    batch_size: int = 64
    """Problems the transformers backend answers at once; vLLM fills its own batches."""
    engine: dict[str, Any] = field(default_factory=dict)
    """More arguments of vllm.LLM, such as gpu_memory_utilization, tensor_parallel_size, enforce_eager."""
    task_folder: str = ""
    """A folder with more task files."""
    data: dict[str, str] = field(default_factory=dict)
    """Local .jsonl copies of the problems, by task: for machines without a network."""
    seed: int = 0
    """Of sampling, and of the choice of few-shot examples."""

    def __post_init__(self):
        checks.choice(self, backend=Backend, dtype=Dtype)
        checks.whole(self, 0, "fewshot", "limit", "seed")
        checks.whole(self, 1, "max_len", "max_new_tokens", "batch_size")
        checks.number(self, 0, 2, "temperature")
        checks.flag(self, "chat_template")
        if not self.checkpoints or not all(isinstance(p, str) and p and "/" not in n for n, p in self.checkpoints.items()):
            checks.fail(self, "checkpoints", "folders or hub names by a name without a slash")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            checks.fail(self, "tasks", "one or more different tasks")
        if not self.depths or any(not isinstance(d, int) or d < 1 for d in self.depths):
            checks.fail(self, "depths", "one or more loop counts of at least 1")
        if unknown := sorted(set(self.data) - set(self.tasks)):
            raise ConfigError(f"EvaluationConfig.data is by task, but {', '.join(unknown)} is not among the tasks")


@dataclass(frozen=True)
class Cell:
    """One checkpoint at one loop count on one task, and its place."""

    checkpoint: str
    depth: int
    task: str
    folder: Path

    @property
    def result(self) -> Path:
        """Where the numbers are, once it is done."""
        return self.folder / f"{self.task}.json"

    @property
    def failure(self) -> Path:
        """Where the reason is, if it failed."""
        return self.folder / f"{self.task}.failed.json"


def evaluate(config: EvaluationConfig, out: str | Path, progress: bool = True) -> pd.DataFrame:
    """Measure every cell that is not there yet; returns `results(out)`.

    Failed cells are tried again, and reported if they fail again. ConfigError, before an engine starts, on a checkpoint that is
    not Ouro, an unknown task, a local file that is not there, or cells measured with other settings.
    """
    out = Path(out).resolve()
    check(config, out)
    cells = list(_cells(config, out))
    with tqdm(total=len(cells), disable=not progress, unit="cell") as bar:
        bar.update(sum(cell.result.exists() for cell in cells))
        for checkpoint in config.checkpoints:
            for depth in config.depths:
                mine = [c for c in cells if (c.checkpoint, c.depth) == (checkpoint, depth) and not c.result.exists()]
                bar.set_description(f"{checkpoint}, T={depth}")
                _measure(config, mine, bar)
    return results(out)


def results(out: str | Path) -> pd.DataFrame:
    """A row per metric of every cell under `out`: model, task, depth, metric, value, stderr, samples, seconds, tokens_per_sec."""
    rows = []
    for path in sorted(Path(out).glob("*/T=*/*.json")):
        if path.name.endswith(".failed.json"):
            continue
        cell = read_json(path)
        for metric, (value, stderr) in cell["metrics"].items():
            where = {"model": cell["model"], "task": cell["task"], "depth": cell["depth"]}
            cost = {key: cell[key] for key in ("samples", "seconds", "tokens_per_sec")}
            rows.append({**where, "metric": metric, "value": value, "stderr": stderr, **cost})
    return pd.DataFrame(rows)


def failures(out: str | Path) -> pd.DataFrame:
    """One row per cell under `out` that failed: model, task, depth, reason."""
    return pd.DataFrame([read_json(path) for path in sorted(Path(out).glob("*/T=*/*.failed.json"))])


def samples(out: str | Path, task: str) -> pd.DataFrame:
    """One row per problem of a task, checkpoint and depth: model, depth, problem, question, target, answer, right."""
    tables = []
    for path in sorted(Path(out).glob(f"*/T=*/{task}.samples.jsonl")):
        table = pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
        tables.append(table.assign(model=path.parent.parent.name, depth=int(path.parent.name.removeprefix("T="))))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def check(config: EvaluationConfig, out: Path) -> None:
    """All that can be known to be wrong before an engine starts. ConfigError."""
    for name, source in config.checkpoints.items():
        try:
            architecture = AutoConfig.from_pretrained(source)
        except (OSError, ValueError) as e:
            raise ConfigError(f"EvaluationConfig.checkpoints, {name}: {source!r} cannot be loaded ({_first_line(e)})") from None
        if not isinstance(architecture, OuroConfig):
            raise ConfigError(f"EvaluationConfig.checkpoints, {name}: {source!r} is a {architecture.model_type}, not an ouro")
    for task, file in config.data.items():
        if not Path(file).is_file():
            raise ConfigError(f"EvaluationConfig.data, {task}: there is no file {file}")
    if config.task_folder and not Path(config.task_folder).is_dir():
        raise ConfigError(f"EvaluationConfig.task_folder: there is no folder {config.task_folder}")
    known = task_index(config)
    if unknown := [task for task in config.tasks if task not in known]:
        near = [name for name in known if any(name.startswith(task[:4]) for task in unknown)][:8]
        raise ConfigError(f"EvaluationConfig.tasks: no task {', '.join(unknown)}; near it: {', '.join(near) or 'none'}")
    mine = settings(config)
    for cell in _cells(config, out):
        if cell.result.exists():
            theirs = read_json(cell.result)["settings"]
            if differing := [key for key in mine if mine[key] != theirs.get(key)]:
                raise ConfigError(f"{cell.result} was measured with another {', '.join(differing)}: choose another folder")


def settings(config: EvaluationConfig) -> dict[str, Any]:
    """What a cell's numbers depend on, beside checkpoint, task and depth."""
    return {key: value for key, value in to_dict(config).items() if key not in _NOT_OF_A_CELL}


def task_index(config: EvaluationConfig) -> dict[str, Any]:
    """Every task there is, by name: lm-eval's own are only read if they are asked for."""
    from lm_eval.tasks import TaskManager  # slow to import

    ours = TaskManager(include_path=task_paths(config), include_defaults=False).task_index
    return ours if set(config.tasks) <= set(ours) else TaskManager(include_path=task_paths(config)).task_index


def task_paths(config: EvaluationConfig) -> list[str]:
    """Folders with task files beside lm-eval's; later ones override earlier ones."""
    return [str(TASKS), *([config.task_folder] if config.task_folder else [])]


def write_local_tasks(config: EvaluationConfig, folder: Path) -> Path:
    """Task files that read the local copies of `config.data` instead of the hub. They include the original ones."""
    index, folder = task_index(config), folder / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    for task, file in config.data.items():
        entry = index[task]
        original = _with_includes(Path(entry.yaml_path))
        split = original.get("test_split") or original.get("validation_split") or "test"
        local = {
            "include": str(entry.yaml_path),
            "task": task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(Path(file).resolve())}},
            **({"training_split": None, "fewshot_split": None} if config.fewshot == 0 else {"fewshot_split": split}),
        }
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(local))
    return folder


def _with_includes(path: Path) -> dict[str, Any]:
    """A task file and what it includes, without the functions."""
    values = yaml.load(path.read_text(encoding="utf-8"), Loader=_WithoutFunctions)
    base = _with_includes(path.parent / values["include"]) if isinstance(values.get("include"), str) else {}
    return {**base, **values}


class _WithoutFunctions(yaml.SafeLoader):
    """Reads `!function module.name` as its text."""


_WithoutFunctions.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def _cells(config: EvaluationConfig, out: Path) -> Iterator[Cell]:
    for checkpoint in config.checkpoints:
        for depth in config.depths:
            for task in config.tasks:
                yield Cell(checkpoint, depth, task, out / checkpoint / f"T={depth}")


def _measure(config: EvaluationConfig, cells: list[Cell], bar: tqdm) -> None:
    """Run engines until every cell has a result or a failure."""
    for cell in cells:
        cell.failure.unlink(missing_ok=True)
    while cells:
        _run_engine(config, cells, bar)
        left = [c for c in cells if not c.result.exists() and not c.failure.exists()]
        if left:  # the engine died: at the first cell without an outcome, or before any
            log = left[0].folder / "engine.log"
            reason = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            started = (left[0].folder / "started").exists()
            for cell in left[:1] if started else left:
                _fail(cell, f"the engine died ({log}):\n{reason}")
                bar.update()
        cells = [c for c in left if not c.failure.exists()]


def _fail(cell: Cell, reason: str) -> None:
    write_json(cell.failure, {"model": cell.checkpoint, "task": cell.task, "depth": cell.depth, "reason": reason})


def _run_engine(config: EvaluationConfig, cells: list[Cell], bar: tqdm) -> None:
    """One engine over `cells`, all of one checkpoint and depth; the bar moves as they land."""
    folder = cells[0].folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "started").unlink(missing_ok=True)
    spec = {"config": to_dict(config), "checkpoint": cells[0].checkpoint, "depth": cells[0].depth, "folder": str(folder)}
    write_json(folder / "spec.json.part", {**spec, "tasks": [c.task for c in cells]})
    landed = 0
    command = [sys.executable, "-m", "looped_lib.ouro.harness_worker", str(folder / "spec.json.part")]
    with open(folder / "engine.log", "w", encoding="utf-8") as log:
        worker = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            while True:
                try:
                    worker.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    pass
                now = sum(c.result.exists() or c.failure.exists() for c in cells)
                bar.update(now - landed)
                landed = now
                if worker.returncode is not None:
                    return
        finally:  # Ctrl-C included: no engine stays behind
            if worker.poll() is None:
                worker.terminate()
                worker.wait()


def _first_line(e: BaseException) -> str:
    return str(e).strip().split("\n")[0]


def main() -> int:
    """Measure and print; exit status 1 if a cell failed, 2 on a wrong config."""
    parser = argparse.ArgumentParser(prog="python -m looped_lib.ouro.harness", description="Evaluate Ouro by loop count")
    parser.add_argument("config", type=Path, help="an EvaluationConfig as JSON")
    parser.add_argument("out", type=Path, help="folder for the results")
    args = parser.parse_args()
    try:
        table = evaluate(from_dict(EvaluationConfig, read_json(args.config), str(args.config)), args.out)
    except (OSError, ValueError) as e:
        parser.error(str(e))
    print(table.to_string(index=False))
    failed = failures(args.out)
    for row in failed.itertuples():
        print(f"failed: {row.model}, T={row.depth}, {row.task}: {row.reason}", file=sys.stderr)
    return 1 if len(failed) else 0


if __name__ == "__main__":
    sys.exit(main())

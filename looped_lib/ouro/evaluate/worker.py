"""One engine of an evaluation, in a process of its own: a checkpoint at its loop counts and exits, on one task after another.

    python -m looped_lib _engine FOLDER        (FOLDER/spec.json is written by `harness`)

Tasks are read before the engine starts, so that data that is not there costs no engine. FOLDER/at.json lists the cells that are
being read, answered or graded, as [place, task]; it is empty while the engine starts. An error in a task is the failure of
the cells it was at, and ends the process: what it left behind in the engine is unknown, and the harness starts another one for
the cells that are left.
"""

import os
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import set_seed

from looped_lib.config import from_dict
from looped_lib.core.compat import task_loader
from looped_lib.core.files import read_json, write_json, write_jsonl
from looped_lib.core.parents import end_with_parent
from looped_lib.ouro.evaluate import engines
from looped_lib.ouro.evaluate.cells import Cell, EvaluationConfig, cells
from looped_lib.ouro.evaluate.checkpoint import find_checkpoint
from looped_lib.ouro.evaluate.checks import brief
from looped_lib.ouro.evaluate.engine_log import root_cause
from looped_lib.ouro.evaluate.reading import local_copy, plain_text, without_wildcards
from looped_lib.ouro.model.exits import Exit
from looped_lib.runs.folders import provenance
from looped_lib.tasks.tokenizer import TURN_END

_STOPS = {"vllm": "stop_token_ids", "transformers": "eos_token_id"}


class Worker:
    """Cells of one checkpoint."""

    def __init__(self, folder: Path):
        self.spec = read_json(folder / "spec.json")
        self.config: EvaluationConfig = from_dict(EvaluationConfig, self.spec["config"])
        self.name = self.spec["checkpoint"]
        self.checkpoint = find_checkpoint(self.config.checkpoints[self.name])
        self.tokenizer = self.checkpoint.tokenizer()
        grid = {(cell.checkpoint, cell.place, cell.task): cell for cell in cells(self.config, folder.parent.parent)}
        self.cells = [grid[self.name, place, task] for place, task in self.spec["cells"]]
        self.at, self.log = folder / "at.json", folder / "log.txt"
        self.log_starts = self.log.stat().st_size if self.log.exists() else 0
        self._links = tempfile.TemporaryDirectory(prefix="looped_lib-")
        self.links = Path(self._links.name)

    def run(self) -> None:
        """Measure the cells, writing each result, or why there is none, as soon as it is known."""
        tasks = {}
        for name, file in self.spec["tasks"].items():
            with suppress(Exception), self.working(*self.of(name)):  # whatever one task's data do, the other tasks go on
                tasks[name] = self.read(name, file)
        write_json(self.at, [])
        if not tasks:
            return
        with suppress(Exception):
            try:
                engine = engines.start(self.config, self.checkpoint, [cell.stop for cell in self.cells], self.links)
            except Exception as e:
                self.fail(e, *(cell for name in tasks for cell in self.of(name)))
                raise
            for name, task in tasks.items():
                self.measure(name, task, engine)

    def of(self, task: str) -> list[Cell]:
        """The cells of a task."""
        return [cell for cell in self.cells if cell.task == task]

    @contextmanager
    def working(self, *at: Cell) -> Iterator[None]:
        """The process is at these cells: an error, or its death, is their failure."""
        write_json(self.at, [(cell.place, cell.task) for cell in at])
        try:
            yield
        except Exception as e:
            self.fail(e, *at)
            raise

    def read(self, name: str, file: str) -> Any:
        """A task of lm-eval with its problems, as the config wants it. ValueError if a question leaves no room for an answer."""
        from lm_eval.tasks import TaskManager

        values, copy = task_loader()(file), self.config.data.get(name)
        try:
            own = values | (local_copy(values, without_wildcards(Path(copy), self.links)) if copy else {})
            own |= {} if self.config.chat_template else plain_text(values, file, self.config.fewshot)
            task = TaskManager(include_defaults=False).load([own])["tasks"][name]
        except Exception as e:
            mend = f"look into {copy}" if copy else f"give a local copy of them in EvaluationConfig.data[{name!r}]"
            raise ValueError(f"its problems cannot be read: {mend} ({brief(e)})") from e
        task.set_config("num_fewshot", self.config.fewshot)
        room = 1  # for the token that a score is of
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", self.generation(), update=True)
            room = self.config.max_new_tokens
        self.build(task)
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            return task  # lm-eval reads a long text in pieces
        texts = ("".join(part for part in instance.args if isinstance(part, str)) for instance in task.instances)
        longest = max(self.tokens(text) for text in texts)
        if longest + room > self.config.max_len:
            raise ValueError(
                f"its longest question has {longest} tokens, with an answer of {room} more than EvaluationConfig.max_len "
                f"{self.config.max_len}: raise that to {longest + room}, or lower max_new_tokens"
            )
        return task

    def build(self, task: Any) -> None:
        """The requests of a task, the same each time."""
        task.set_fewshot_seed(self.config.seed)
        task.build_all_requests(**self.asking(), chat_template=self.chat)

    def measure(self, name: str, task: Any, engine: Any) -> None:
        """Put the questions of a task to the engine at all stops at once, and grade and write what it answers at each."""
        mine = self.of(name)
        start = time.perf_counter()
        with self.working(*mine):
            engine.prepare(task.instances, [cell.stop for cell in mine])
        shared = (time.perf_counter() - start) / len(mine)
        for cell in mine:
            with self.working(cell):
                self.grade(cell, task, engine, shared)

    def grade(self, cell: Cell, task: Any, engine: Any, shared: float) -> None:
        """Write what the engine answers in a cell and how that is graded. `shared`: its share of the seconds spent before."""
        from lm_eval.evaluator import evaluate

        engine.stop = cell.stop
        set_seed(self.config.seed)
        task.set_fewshot_seed(self.config.seed)  # lm-eval builds the requests again: the same ones
        start = time.perf_counter()
        found = evaluate(engine, {"tasks": {cell.task: task}}, **self.asking())
        seconds = shared + time.perf_counter() - start
        rows = problems(found["samples"][cell.task])
        generated = None
        if task.OUTPUT_TYPE == "generate_until":
            generated = sum(self.tokens(text) for instance in task.instances for text in instance.resps)
        write_jsonl(cell.samples, rows)
        write_json(
            cell.result,
            {
                **cell.what,
                **({"loops": engine.mean_loops(cell.stop)} if isinstance(cell.stop, Exit) else {}),
                "metrics": metrics(found["results"][cell.task]),
                **{"samples": len(rows), "seconds": seconds, "tokens_per_sec": generated and generated / seconds},
                **{
                    "settings": self.config.decisive(),
                    "source": self.checkpoint.source,
                    **self.checkpoint.trained,
                    "weights": self.spec["weights"],
                },
                "provenance": self.provenance(),
            },
        )

    def provenance(self) -> dict[str, Any]:
        """What a result depends on beside its settings, lm-eval and vLLM included."""
        out = provenance()
        used = ("lm_eval", "vllm") if self.config.backend == "vllm" else ("lm_eval",)
        return {**out, "versions": {**out["versions"], **{name: metadata.version(name) for name in used}}}

    def fail(self, e: Exception, *at: Cell) -> None:
        """Write that cells failed, and why."""
        reason = brief(e)
        if "root cause" in str(e):  # which another process of the engine has told the log
            reason = root_cause(self.log, self.log_starts) or reason
        traceback.print_exception(e)
        for cell in at:
            write_json(cell.failure, {**cell.what, "reason": reason})

    def asking(self) -> dict[str, Any]:
        """How lm-eval puts a question."""
        return {
            "limit": self.config.limit or None,
            "system_instruction": self.config.system_prompt or None,
            "apply_chat_template": self.config.chat_template,
            "fewshot_as_multiturn": True,
        }

    def generation(self) -> dict[str, Any]:
        """How answers are generated. They end with the text, or with the turn of a chat."""
        config, tokenizer = self.config, self.tokenizer
        stops = [tokenizer.eos_token_id]
        if TURN_END in tokenizer.get_vocab():
            stops.append(tokenizer.convert_tokens_to_ids(TURN_END))
        sampled = {"do_sample": config.temperature > 0, "temperature": config.temperature}
        return {**sampled, "max_gen_toks": config.max_new_tokens, _STOPS[config.backend]: stops}

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as the text that the engine gets."""
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer(text).input_ids)


def metrics(values: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """lm-eval's {"exact_match,none": ..., "exact_match_stderr,none": ...} as {metric: (value, standard error)}."""
    out = {}
    for key, value in values.items():
        name, _, variant = key.partition(",")
        if variant and isinstance(value, int | float) and not name.endswith("_stderr"):
            stderr = values.get(f"{name}_stderr,{variant}")
            out[label(name, variant)] = (float(value), float(stderr) if isinstance(stderr, int | float) else None)
    return out


def problems(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """lm-eval's samples, one for each problem and filter, as one row per problem with a grade for each metric.

    A problem that was answered several times (a task's `repeats`) has all its answers in `answers` too.
    """
    rows = {}
    for sample in sorted(samples, key=lambda s: s["doc_id"]):
        row = rows.setdefault(
            sample["doc_id"],
            {
                "problem": sample["doc_id"],
                "question": sample["arguments"][0][0],
                "target": str(sample["target"]),
                "answer": _answer(sample),
                "grades": {},
            },
        )
        if len(sample["resps"][0]) > 1:
            row["answers"] = list(sample["resps"][0])
        grades = {name: sample[name] for name in sample["metrics"] if isinstance(sample[name], int | float)}
        row["grades"] |= {label(name, sample["filter"]): float(grade) for name, grade in grades.items()}
    return list(rows.values())


def label(metric: str, variant: str) -> str:
    """A metric's name in our tables: with the filter that the answer went through, if there was one."""
    return metric if variant == "none" else f"{metric} ({variant})"


def _answer(sample: dict[str, Any]) -> str:
    """What a model answered, or, of a task that generates nothing, how likely it thinks the right answer, or the text."""
    unfiltered = sample["filter"] == "none" and isinstance(sample["filtered_resps"], list)
    said = sample["filtered_resps"][0] if unfiltered else sample["resps"][0][0]
    said = said[0] if isinstance(said, list) else said
    if isinstance(said, float | int):
        return f"log-probability of the text {said:.2f}"
    if isinstance(said, tuple):
        return f"log-probability of the right answer {said[0]:.2f}; {'' if said[1] else 'not '}the likeliest"
    return str(said)


def main(arguments: list[str]) -> None:
    """Measure the cells of the folder that the harness names."""
    end_with_parent(partial(os.killpg, 0, signal.SIGKILL))  # nobody waits for an engine whose harness was killed
    Worker(Path(arguments[0])).run()

"""One engine of an evaluation, in a process of its own: a checkpoint at a loop count, on one task after another.

    python -m looped_lib _engine FOLDER        (FOLDER/spec.json is written by `harness`)

Tasks are read before the engine starts, so that data that is not there costs no engine. FOLDER/at says which task is being read
or measured; it is empty while the engine starts. An error in a task is that cell's failure, and ends the process: what it left
behind in the engine is unknown, and the harness starts another one for the tasks that are left.
"""

import os
import signal
import time
import traceback
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, set_seed

from looped_lib.config import from_dict
from looped_lib.core.files import read_json, write_json, write_jsonl
from looped_lib.core.parents import end_with_parent
from looped_lib.ouro.evaluate.accuracy import END_OF_TURN
from looped_lib.ouro.evaluate.cells import Cell, EvaluationConfig
from looped_lib.ouro.evaluate.checks import brief
from looped_lib.runs.folders import provenance

SMALL = 10_000_000  # parameters


class Worker:
    """The cells of one checkpoint at one depth."""

    def __init__(self, folder: Path):
        self.spec = read_json(folder / "spec.json")
        self.config: EvaluationConfig = from_dict(EvaluationConfig, self.spec["config"])
        self.name, self.depth = self.spec["checkpoint"], self.spec["depth"]
        self.source = self.config.checkpoints[self.name]
        self.tokenizer = AutoTokenizer.from_pretrained(self.source)
        self.cells = {task: Cell(self.name, self.depth, task, folder.parent) for task in self.spec["tasks"]}
        self.at = folder / "at"

    def run(self) -> None:
        """Measure the cells, writing each result, or why there is none, as soon as it is known."""
        tasks = {}
        for name, file in self.spec["tasks"].items():
            self.at.write_text(name)
            try:
                tasks[name] = self.read(name, file)
            except Exception as e:  # whatever one task's data do, the other tasks go on
                self.fail(e, name)
        self.at.write_text("")
        if not tasks:
            return
        try:
            engine = self.engine()
        except Exception as e:
            self.fail(e, *tasks)
            return
        for name, task in tasks.items():
            self.at.write_text(name)
            try:
                self.measure(name, task, engine)
            except Exception as e:
                self.fail(e, name)
                return

    def read(self, name: str, file: str) -> Any:
        """A task of lm-eval with its problems, as the config wants it. ValueError if a question leaves no room for an answer."""
        from lm_eval.tasks import TaskManager
        from lm_eval.tasks._yaml_loader import load_yaml

        values, copy = load_yaml(file), self.config.data.get(name)
        try:
            own = values | (local_copy(values, Path(copy)) if copy else {})
            task = TaskManager(include_defaults=False).load([own])["tasks"][name]
        except Exception as e:
            mend = f"look into {copy}" if copy else f"give a local copy of them in EvaluationConfig.data[{name!r}]"
            raise ValueError(f"its problems cannot be read: {mend} ({brief(e)})") from e
        task.set_config("num_fewshot", self.config.fewshot)
        task.set_fewshot_seed(self.config.seed)
        room = 1
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", self.generation(), update=True)
            room = self.config.max_new_tokens
        task.build_all_requests(**self.asking(), chat_template=self.chat)
        texts = ("".join(part for part in instance.args if isinstance(part, str)) for instance in task.instances)
        longest = max(self.tokens(text) for text in texts)
        if longest + room > self.config.max_len:
            raise ValueError(
                f"its longest question has {longest} tokens, with an answer of {room} more than EvaluationConfig.max_len "
                f"{self.config.max_len}: raise that to {longest + room}, or lower max_new_tokens"
            )
        return task

    def measure(self, name: str, task: Any, engine: Any) -> None:
        """Put the questions of a task to the engine, and write what it answers and how that is graded."""
        from lm_eval.evaluator import evaluate

        set_seed(self.config.seed)
        start = time.perf_counter()
        found = evaluate(engine, {"tasks": {name: task}}, **self.asking())
        seconds = time.perf_counter() - start
        rows = problems(found["samples"][name])
        generated = sum(self.tokens(row["answer"]) for row in rows) if task.OUTPUT_TYPE == "generate_until" else None
        write_jsonl(self.cells[name].samples, rows)
        write_json(
            self.cells[name].result,
            {
                **{"model": self.name, "task": name, "depth": self.depth, "metrics": metrics(found["results"][name])},
                **{"samples": len(rows), "seconds": seconds, "tokens_per_sec": generated and generated / seconds},
                **{"settings": self.config.decisive(), "source": self.source, "weights": self.spec["weights"]},
                "provenance": self.provenance(),
            },
        )

    def provenance(self) -> dict[str, Any]:
        """What a result depends on beside its settings, lm-eval and vLLM included."""
        out = provenance()
        used = ("lm_eval", "vllm") if self.config.backend == "vllm" else ("lm_eval",)
        return {**out, "versions": {**out["versions"], **{name: metadata.version(name) for name in used}}}

    def fail(self, e: Exception, *tasks: str) -> None:
        """Write that cells failed, and why."""
        traceback.print_exception(e)
        for task in tasks:
            cell = self.cells[task]
            write_json(cell.failure, {"model": cell.checkpoint, "task": task, "depth": cell.depth, "reason": brief(e)})

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
        if END_OF_TURN in tokenizer.get_vocab():
            stops.append(tokenizer.convert_tokens_to_ids(END_OF_TURN))
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

    def engine(self) -> Any:
        """lm-eval's engine of the config's backend, looping `depth` times."""
        return (_vllm if self.config.backend == "vllm" else _transformers)(self.config, self.source, self.depth)


_STOPS = {"vllm": "stop_token_ids", "transformers": "eos_token_id"}


def local_copy(values: dict[str, Any], copy: Path) -> dict[str, Any]:
    """What to change in the `values` of a task file so that it reads a local copy of its data.

    A folder is a copy of the dataset as the hub has it. A file holds the problems alone; few-shot examples are then chosen among
    the others of them, unless the task brings its own.
    """
    if copy.is_dir():
        return {"custom_dataset": None, "dataset_path": str(copy)}
    split = values.get("test_split") or values["validation_split"]
    kind = "parquet" if copy.suffix == ".parquet" else "json"
    changed = {"custom_dataset": None, "dataset_path": kind, "dataset_name": None, "training_split": None}
    changed["dataset_kwargs"] = {"data_files": {split: str(copy.resolve())}}
    if "test_split" in values:  # lm-eval leaves the question itself out of its examples if the two splits are one by name
        changed |= {"validation_split": None, "fewshot_split": None if _brings_examples(values) else split}
    return changed


def _brings_examples(values: dict[str, Any]) -> bool:
    return bool((values.get("fewshot_config") or {}).get("samples"))


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
    """lm-eval's samples, one for each problem and filter, as one row per problem with a grade for each metric."""
    rows = {}
    for sample in sorted(samples, key=lambda s: s["doc_id"]):
        answer = sample["resps"][0][0]
        row = rows.setdefault(
            sample["doc_id"],
            {
                "problem": sample["doc_id"],
                "question": sample["arguments"][0][0],
                "target": str(sample["target"]),
                "answer": answer if isinstance(answer, str) else _likelihood(*answer),
                "grades": {},
            },
        )
        grades = {name: sample[name] for name in sample["metrics"] if isinstance(sample[name], int | float)}
        row["grades"] |= {label(name, sample["filter"]): float(grade) for name, grade in grades.items()}
    return list(rows.values())


def label(metric: str, variant: str) -> str:
    """A metric's name in our tables: with the filter that the answer went through, if there was one."""
    return metric if variant == "none" else f"{metric} ({variant})"


def _likelihood(log_probability: float, is_greedy: bool) -> str:
    """What is asked of a task that generates nothing: how likely is the right answer?"""
    return f"log-probability of the right answer {log_probability:.2f}; {'' if is_greedy else 'not '}the likeliest"


def _vllm(config: EvaluationConfig, source: str, depth: int) -> Any:
    from lm_eval.api.registry import get_model

    arguments = {
        "pretrained": source,
        "dtype": config.dtype,
        "max_model_len": config.max_len,
        "max_gen_toks": config.max_new_tokens,
        "seed": config.seed,
        "hf_overrides": {"total_ut_steps": depth},
        **config.engine,
    }
    return get_model("vllm").create_from_arg_obj(arguments, {"batch_size": "auto"})


def _transformers(config: EvaluationConfig, source: str, depth: int) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    from looped_lib.ouro.model.modeling import OuroForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = OuroForCausalLM.from_pretrained(source, dtype=config.dtype, total_ut_steps=depth).to(device).eval()
    if device == "cpu" and model.num_parameters() < SMALL:
        torch.set_num_threads(1)  # on small matrices two threads mostly wait for each other
    tokenizer = AutoTokenizer.from_pretrained(source)
    return HFLM(model, backend="causal", tokenizer=tokenizer, batch_size=config.batch_size, max_length=config.max_len)


def main(arguments: list[str]) -> None:
    """Measure the cells of the folder that the harness names."""
    end_with_parent(partial(os.killpg, 0, signal.SIGKILL))  # nobody waits for an engine whose harness was killed
    Worker(Path(arguments[0])).run()

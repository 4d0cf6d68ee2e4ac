"""One engine of an evaluation, in a process of its own: a checkpoint at a loop count, on one task after another.

    python -m looped_lib.ouro.harness_worker SPEC.json        (written by `harness`)

Tasks are loaded before the engine starts, so that missing data costs no engine.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from looped_lib.config import from_dict
from looped_lib.files import read_json, write_json, write_jsonl
from looped_lib.ouro.evaluate import END_OF_TURN
from looped_lib.ouro.harness import EvaluationConfig, settings, task_paths, write_local_tasks
from looped_lib.runs import provenance


def run(spec: dict[str, Any]) -> None:
    """Measure the cells of `spec`, writing each result, or why there is none, as soon as it is known."""
    from lm_eval.tasks import TaskManager

    config, folder = from_dict(EvaluationConfig, spec["config"]), Path(spec["folder"])
    local = write_local_tasks(config, folder)
    manager = TaskManager(include_path=[*task_paths(config), str(local)], include_defaults=bool(_of_lm_eval(config)))
    tasks = {}
    for name in spec["tasks"]:
        try:
            tasks[name] = manager.load([name])["tasks"]
        except Exception as e:  # whatever a task's data does, the other tasks go on
            _fail(
                spec,
                name,
                f"its data could not be loaded: {_first_line(e)}. Give a local copy in EvaluationConfig.data[{name!r}]",
            )
    if not tasks:
        return
    source = config.checkpoints[spec["checkpoint"]]
    engine, stops = (_vllm if config.backend == "vllm" else _transformers)(config, source, spec["depth"])
    (folder / "started").touch()
    for name in tasks:
        _measure(spec, config, name, engine, stops, manager)


def _of_lm_eval(config: EvaluationConfig) -> set[str]:
    """Tasks that only lm-eval's own files define: reading those takes seconds."""
    from lm_eval.tasks import TaskManager

    return set(config.tasks) - set(TaskManager(include_path=task_paths(config), include_defaults=False).task_index)


def _measure(spec: dict[str, Any], config: EvaluationConfig, task: str, engine: Any, stops: dict[str, Any], manager: Any) -> None:
    from lm_eval import simple_evaluate

    generation = {"max_gen_toks": config.max_new_tokens, "do_sample": config.temperature > 0, **stops}
    if config.temperature > 0 or config.backend == "vllm":
        generation["temperature"] = config.temperature
    start = time.perf_counter()
    found = simple_evaluate(
        engine,
        tasks=[task],
        num_fewshot=config.fewshot,
        limit=config.limit or None,
        system_instruction=config.system_prompt or None,
        apply_chat_template=config.chat_template,
        gen_kwargs=generation,
        task_manager=manager,
        random_seed=config.seed,
        numpy_random_seed=config.seed,
        torch_random_seed=config.seed,
        fewshot_random_seed=config.seed,
    )
    seconds = time.perf_counter() - start
    rows = [_sample(sample) for sample in sorted(found["samples"][task], key=lambda s: s["doc_id"])]
    answers = {row["problem"]: row["answer"] for row in rows}  # a task with several filters has as many rows per problem
    tokens = sum(len(engine.tok_encode(answer)) for answer in answers.values())
    folder = Path(spec["folder"])
    write_jsonl(folder / f"{task}.samples.jsonl", rows)
    write_json(
        folder / f"{task}.json",
        {
            **{"model": spec["checkpoint"], "task": task, "depth": spec["depth"]},
            "metrics": _metrics(found["results"][task]),
            **{"samples": len(answers), "seconds": seconds, "tokens_per_sec": tokens / seconds},
            **{"settings": settings(config), "provenance": provenance()},
        },
    )


def _metrics(values: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """lm-eval's {"exact_match,none": ..., "exact_match_stderr,none": ...} as {metric: (value, standard error)}."""
    out = {}
    for key, value in values.items():
        name, _, variant = key.partition(",")
        if not isinstance(value, int | float) or name.endswith("_stderr") or not variant:
            continue
        stderr = values.get(f"{name}_stderr,{variant}")
        label = name if variant == "none" else f"{name} ({variant})"
        out[label] = (float(value), float(stderr) if isinstance(stderr, int | float) else None)
    return out


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    """One problem as it was put, answered and graded."""
    metrics = {name: sample[name] for name in sample.get("metrics", []) if isinstance(sample.get(name), int | float)}
    answer = sample["resps"][0][0]
    return {
        "problem": sample["doc_id"],
        "question": sample["arguments"][0][0],
        "target": str(sample["target"]),
        "answer": answer if isinstance(answer, str) else json.dumps(answer),
        "right": max(metrics.values(), default=None),
        "filter": sample.get("filter", "none"),
    }


def _vllm(config: EvaluationConfig, source: str, depth: int) -> tuple[Any, dict[str, Any]]:
    """lm-eval's vLLM engine, looping `depth` times, and the tokens that end an answer."""
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
    engine = get_model("vllm").create_from_arg_obj(arguments, {"batch_size": "auto"})
    return engine, {"stop_token_ids": _stops(engine.tokenizer)}


def _transformers(config: EvaluationConfig, source: str, depth: int) -> tuple[Any, dict[str, Any]]:
    """lm-eval's transformers engine on our model, looping `depth` times, and the tokens that end an answer."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from looped_lib.ouro.modeling import OuroForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = OuroForCausalLM.from_pretrained(source, dtype=config.dtype, total_ut_steps=depth).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    engine = HFLM(model, tokenizer=tokenizer, batch_size=config.batch_size, max_length=config.max_len)
    return engine, {"eos_token_id": _stops(tokenizer)}


def _stops(tokenizer: Any) -> list[int]:
    """The end of a text, and of a turn of a chat where the tokenizer has one."""
    stops = [tokenizer.eos_token_id]
    if END_OF_TURN in tokenizer.get_vocab():
        stops.append(tokenizer.convert_tokens_to_ids(END_OF_TURN))
    return stops


def _fail(spec: dict[str, Any], task: str, reason: str) -> None:
    where = {"model": spec["checkpoint"], "task": task, "depth": spec["depth"]}
    write_json(Path(spec["folder"]) / f"{task}.failed.json", {**where, "reason": reason})


def _first_line(e: BaseException) -> str:
    return f"{type(e).__name__}: {e}".strip().split("\n")[0]


if __name__ == "__main__":
    run(read_json(sys.argv[1]))

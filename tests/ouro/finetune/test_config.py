"""The recipe of the paper, number by number; settings that cannot work, refused by name before any work; schedules."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ouro_jobs import TOKENIZER, config, inputs
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig

from looped_lib.config import PenaltyConfig, from_dict, to_dict
from looped_lib.core.checks import ConfigError
from looped_lib.core.errors import run
from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import find_root
from looped_lib.ouro.finetune import job, presets
from looped_lib.ouro.finetune.config import ChatDataConfig, FinetuneConfig, UpdatesConfig
from looped_lib.ouro.finetune.folder import check_config
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM
from looped_lib.samplers import TRAINED_DEPTH, FixedLoops, LogNormalLoops
from looped_lib.training.processes import Processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    with inputs(tmp_path_factory.mktemp("config")) as folder:
        yield folder


def test_the_paper_preset_is_the_recipe_of_the_paper():
    """Fine-tuning Ouro-1.4B, arXiv 2605.26733 and its public code."""
    c = presets.stars("paper", "ByteDance/Ouro-1.4B")
    assert c == FinetuneConfig() and c.model == "ByteDance/Ouro-1.4B" and not c.from_scratch
    assert c.loops == LogNormalLoops(mu=1.7, sigma=0.4, low=1, high=16)
    assert c.loops.mean() == pytest.approx(5.9, abs=0.05) and (c.loops.quantile(0.5), c.loops.quantile(0.95)) == (5, 11)
    assert (c.penalty.weight, c.penalty.onset, c.penalty.share, c.penalty.quantity) == (0.1, 0, 1.0, "squared_fro")
    assert c.loss == "last_loop" and c.seed == 74
    data = c.data
    assert (data.dataset, data.prompt_column, data.response_column) == ("AI-MO/NuminaMath-1.5", "problem", "solution")
    assert data.system_prompt == "You are a helpful assistant that can assist users with reasoning."
    assert (data.max_rows, data.max_len, data.packing) == (400_000, 2048, False)
    u = c.updates
    assert (u.lr, u.weight_decay, u.betas) == (1e-6, 0.0, (0.9, 0.95))
    assert (u.schedule, u.warmup_ratio, u.decay_ratio, u.min_lr_ratio) == ("warmup_stable_decay", 0.1, 0.1, 0.001)
    assert (u.batch_size, u.micro_batch, job.accumulation(u, 8)) == (256, 1, 32)
    assert (u.precision, u.gradient_checkpointing, u.lora_rank) == ("bf16", True, 0)
    assert (u.checkpoint_every, u.checkpoints_kept, u.steps) == (300, 2, 0)  # one epoch


def test_the_trainer_is_told_the_recipe(tmp_path):
    args = job.arguments(FinetuneConfig(), tmp_path, rows=400_000, world=8)
    assert (args.max_steps, args.per_device_train_batch_size, args.gradient_accumulation_steps) == (1563, 1, 32)
    assert (args.learning_rate, args.weight_decay, args.adam_beta1, args.adam_beta2) == (1e-6, 0.0, 0.9, 0.95)
    assert args.lr_scheduler_type == "warmup_stable_decay" and args.warmup_steps == 156
    assert args.lr_scheduler_kwargs == {"num_decay_steps": 156, "min_lr_ratio": 0.001}
    assert args.bf16 and args.gradient_checkpointing and args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert (args.save_steps, args.seed, args.optim, args.adam_epsilon) == (300, 74, "adamw_torch_fused", 1e-8)
    cosine = replace(FinetuneConfig(), updates=UpdatesConfig(schedule="cosine"))
    args = job.arguments(cosine, tmp_path, rows=400_000, world=8)
    assert args.lr_scheduler_type == "cosine_with_min_lr" and args.lr_scheduler_kwargs == {"min_lr_rate": 0.001}


def warmup_stable_decay(u: int, steps: int, warm: int, decay: int, least: float) -> float:
    if u < warm:
        return least + (1 - least) * u / warm
    into = max(0, u - (steps - decay))
    return least + (1 - least) * (1 + math.cos(math.pi * into / decay)) / 2


def cosine(u: int, steps: int, warm: int, decay: int, least: float) -> float:
    if u < warm:
        return u / warm
    return least + (1 - least) * (1 + math.cos(math.pi * (u - warm) / (steps - warm))) / 2


@pytest.mark.parametrize("curve", [warmup_stable_decay, cosine], ids=lambda curve: curve.__name__)
def test_learning_rates_warm_up_linearly_and_end_at_their_least(folder, curve):
    """A share of the peak, for the update after u updates; the least is reached with the last one."""
    c = config(folder, steps=40, lr=2.0, schedule=curve.__name__, warmup_ratio=0.1, decay_ratio=0.25, min_lr_ratio=0.01)
    trainer = job.prepare(c, folder / curve.__name__, ONE)
    trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
    rates = []
    for _ in range(41):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    np.testing.assert_allclose(rates, [2.0 * curve(u, 40, 4, 10, 0.01) for u in range(41)], rtol=1e-12)
    assert rates[4] == 2.0 and rates[40] == pytest.approx(0.02)
    if curve is warmup_stable_decay:
        assert rates[4:31] == [2.0] * 27


def test_modes_differ_in_depth_and_penalty_only():
    modes = presets.modes(FinetuneConfig())
    fixed, free = FixedLoops(4), replace(FinetuneConfig().penalty, weight=0.0)
    assert modes == {
        "sft": FinetuneConfig(loops=fixed, penalty=free),
        "random": FinetuneConfig(penalty=free),
        "jsrr": FinetuneConfig(loops=fixed),
        "stars": FinetuneConfig(),
    }
    assert list(presets.modes(FinetuneConfig(), "stars sft")) == ["stars", "sft"]
    for wrong in ("", "stars lora"):
        with pytest.raises(ValueError, match="modes must be all, or some of sft, random, jsrr, stars"):
            presets.modes(FinetuneConfig(), wrong)


@pytest.mark.parametrize("preset", ["smoke", "cpu", "paper"])
def test_studies_run_in_order_and_survive_json(tmp_path, preset, monkeypatch):
    if preset == "paper":  # whose model is on the hub
        monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name: {"ByteDance/Ouro-1.4B": OuroConfig()}[name])
    runs, architecture = presets.study(preset, tmp_path, "all", seed=5)
    names = [f"{mode}-seed5" for mode in presets.MODES]
    assert list(runs) == ([] if preset == "paper" else ["base-seed5"]) + names and isinstance(architecture, OuroConfig)
    for name, c in runs.items():
        assert from_dict(FinetuneConfig, json.loads(json.dumps(to_dict(c)))) == c and c.seed == 5
        assert name == f"{presets.mode(c)}-seed5"
        if preset != "paper" and name != "base-seed5":
            assert c.model == str(tmp_path / "base-seed5" / "model") and not c.from_scratch
    if preset != "paper":
        base = runs["base-seed5"]
        assert base.from_scratch and base.penalty.weight == 0 and base.loops == FixedLoops(TRAINED_DEPTH)
        assert Path(base.data.dataset) == find_root() / "data" / "word_problems" / "train.jsonl"
        assert AutoConfig.from_pretrained(base.model).to_dict() == architecture.to_dict()


def test_presets_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="preset must be one of smoke, cpu, paper, got 'huge'"):
        presets.stars("huge", "x")
    with pytest.raises(ValueError, match="nothing to pre-train"):
        presets.pretraining("paper", tmp_path)


ONE = Processes(0, 1, torch.device("cpu"))
EXACT = PenaltyConfig(weight=0.1, share=1.0, onset=0)
WRONG: dict[str, Callable[[], object]] = {
    "ChatDataConfig.max_len must be a whole number of at least 2, got 1": lambda: ChatDataConfig(max_len=1),
    "ChatDataConfig.max_rows must be a whole number of at least 0, got -1": lambda: ChatDataConfig(max_rows=-1),
    "ChatDataConfig.prompt_column must be a text that is not empty": lambda: ChatDataConfig(prompt_column=""),
    "ChatDataConfig.system_prompt must be a text": lambda: ChatDataConfig(system_prompt=None),
    "ChatDataConfig.packing must be True or False": lambda: ChatDataConfig(packing=1),
    "UpdatesConfig.lr must be a number in (0, inf), got 0": lambda: UpdatesConfig(lr=0),
    "UpdatesConfig.lr must be a number in (0, inf), got '1e-6'": lambda: UpdatesConfig(lr="1e-6"),
    "UpdatesConfig.micro_batch must be a divisor of batch_size (256), got 3": lambda: UpdatesConfig(micro_batch=3),
    "UpdatesConfig.decay_ratio must be at most 1 - warmup_ratio (0.4), got 0.5": lambda: UpdatesConfig(
        warmup_ratio=0.6, decay_ratio=0.5
    ),
    "UpdatesConfig.betas must be 2 numbers in [0, 1), got (0.9,)": lambda: UpdatesConfig(betas=(0.9,)),
    "UpdatesConfig.betas must be 2 numbers in [0, 1), got None": lambda: UpdatesConfig(betas=None),
    "UpdatesConfig.lr must be a number in (0, inf), got 1000": lambda: UpdatesConfig(lr=10**400),
    "UpdatesConfig.report_to must be a list with none or some of tensorboard, wandb": lambda: UpdatesConfig(report_to=("w&b",)),
    "UpdatesConfig.report_to must be a list with none or some": lambda: UpdatesConfig(report_to="wandb"),
    "FinetuneConfig.seed must be a whole number of at most 4294967295": lambda: FinetuneConfig(seed=2**64),
    "UpdatesConfig.precision must be 'bf16' with 'flash_attention_2'": lambda: FinetuneConfig(
        updates=UpdatesConfig(attention="flash_attention_2", precision="fp32")
    ),
    "UpdatesConfig.schedule must be one of 'warmup_stable_decay', 'cosine'": lambda: UpdatesConfig(schedule="linear"),
    "UpdatesConfig.precision must be one of 'fp32', 'bf16'": lambda: UpdatesConfig(precision="fp16"),
    "UpdatesConfig.attention must be one of 'sdpa'": lambda: UpdatesConfig(attention="flash"),
    "UpdatesConfig.parallel must be one of 'ddp', 'fsdp2'": lambda: UpdatesConfig(parallel="zero"),
    "UpdatesConfig.checkpoint_every must be a whole number of at least 1": lambda: UpdatesConfig(checkpoint_every=0),
    "FinetuneConfig.loss must be one of 'last_loop', 'gate_mixture'": lambda: FinetuneConfig(loss="mean"),
    "FinetuneConfig.model must be a text": lambda: FinetuneConfig(model=""),
    "FinetuneConfig.seed must be a whole number": lambda: FinetuneConfig(seed=-1),
    "PenaltyConfig.product must be 'finite_difference' with UpdatesConfig.parallel 'fsdp2'": lambda: FinetuneConfig(
        penalty=EXACT, updates=UpdatesConfig(parallel="fsdp2")
    ),
    "PenaltyConfig.product must be 'finite_difference' with UpdatesConfig.compile": lambda: FinetuneConfig(
        penalty=EXACT, updates=UpdatesConfig(compile=True)
    ),
    "UpdatesConfig.micro_batch must be 1 with ChatDataConfig.packing and 'flash_attention_2'": lambda: FinetuneConfig(
        data=ChatDataConfig(packing=True), updates=UpdatesConfig(micro_batch=2, attention="flash_attention_2")
    ),
    "FinetuneConfig.from_scratch leaves adapters": lambda: FinetuneConfig(from_scratch=True, updates=UpdatesConfig(lora_rank=4)),
    "PenaltyConfig.public_code and persistent are not for fine-tuning": lambda: FinetuneConfig(
        penalty=replace(EXACT, public_code=True, share=1.0)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_settings_that_cannot_work_are_refused_by_name(message):
    with pytest.raises(ConfigError) as e:
        WRONG[message]()
    assert str(e.value).startswith(message)


def test_first_order_settings_go_with_any_product_of_a_penalty_that_is_off():
    off = replace(EXACT, weight=0.0)
    for updates in (UpdatesConfig(parallel="fsdp2"), UpdatesConfig(compile=True)):
        assert FinetuneConfig(penalty=off, updates=updates).penalty.product == "vjp"
        assert FinetuneConfig(penalty=replace(EXACT, product="finite_difference"), updates=updates)


def write_models(folder: Path) -> None:
    """Folders that are nearly a model, beside the one that is."""
    start, tensors = folder / "start", load_file(folder / "start" / "model.safetensors")
    LlamaConfig().save_pretrained(folder / "llama")
    for name in ("no_weights", "torn", "missing", "unexpected", "wider"):
        shutil.copytree(start, folder / name)
        file = folder / name / "model.safetensors"
        match name:
            case "no_weights":
                file.unlink()
            case "torn":
                file.write_bytes(file.read_bytes()[:-1000])
            case "missing":
                save_file({k: v for k, v in tensors.items() if k != "lm_head.weight"}, file, {"format": "pt"})
            case "unexpected":
                save_file(tensors | {"odd": tensors["lm_head.weight"].clone()}, file, {"format": "pt"})
            case "wider":
                values = read_json(folder / name / "config.json")
                write_json(folder / name / "config.json", values | {"hidden_size": 32, "head_dim": 16})
    shutil.copytree(TOKENIZER, folder / "no_template")
    (folder / "no_template" / "chat_template.jinja").unlink()
    OuroForCausalLM(replace_vocabulary(OuroConfig.from_pretrained(start))).save_pretrained(folder / "few_words")
    shutil.copytree(TOKENIZER, folder / "damaged_template")
    (folder / "damaged_template" / "chat_template.jinja").write_text("{% for message in %}")
    shutil.copytree(start, folder / "threshold")
    write_json(folder / "threshold" / "config.json", read_json(start / "config.json") | {"early_exit_threshold": "0.5"})
    (folder / "empty.jsonl").write_text("")
    (folder / "torn.json").write_text('{"seed": ')


def replace_vocabulary(c: OuroConfig) -> OuroConfig:
    c.vocab_size = 100
    return c


def changed(folder: Path, **fields) -> dict:
    return to_dict(replace(config(folder), **fields))


COMMANDS: dict[str, Callable[[Path], dict]] = {
    "FinetuneConfig has no field model_name; it has model, ": lambda f: to_dict(config(f)) | {"model_name": "x"},
    "UpdatesConfig.lr must be a number": lambda f: to_dict(config(f)) | {"updates": {"lr": "fast"}},
    "UpdatesConfig.batch_size must be a multiple of micro_batch times the number of processes (8 x 2), got 8": lambda f: to_dict(
        config(f, micro_batch=8)
    ),
    "FinetuneConfig.model must be an Ouro model, got": lambda f: changed(f, model=str(f / "llama")),
    "FinetuneConfig.model must be an existing folder, or a name on the hub": lambda f: changed(f, model=str(f / "nothing")),
    "no_weights' could not be loaded: Error no file named model.safetensors": lambda f: changed(f, model=str(f / "no_weights")),
    "torn' could not be loaded: ": lambda f: changed(f, model=str(f / "torn")),
    "are not this model's: missing_keys ['lm_head.weight']": lambda f: changed(f, model=str(f / "missing")),
    "are not this model's: unexpected_keys ['odd']": lambda f: changed(f, model=str(f / "unexpected")),
    "are not this model's: mismatched_keys [": lambda f: changed(f, model=str(f / "wider")),
    "FinetuneConfig.tokenizer must be an existing folder": lambda f: changed(f, tokenizer=str(f / "nothing")),
    "has no tokenizer that can be loaded (": lambda f: changed(f, tokenizer=""),
    "has no chat template: conversations cannot be written out": lambda f: changed(f, tokenizer=str(f / "no_template")),
    "FinetuneConfig.tokenizer must have at most the model's 100 tokens": lambda f: changed(f, model=str(f / "few_words")),
    "ChatDataConfig.response_column must be a column of": lambda f: changed(
        f, data=replace(config(f).data, response_column="reply")
    ),
    "empty.jsonl: no rows that can be read": lambda f: changed(f, data=replace(config(f).data, dataset=str(f / "empty.jsonl"))),
    "UpdatesConfig.attention 'flash_attention_2' needs the package flash-attn": lambda f: to_dict(
        config(f, attention="flash_attention_2", precision="bf16")
    ),
    "UpdatesConfig.report_to: trackio is not installed: pip install trackio": lambda f: to_dict(
        config(f, report_to=("trackio",))
    ),
    "the chat template of": lambda f: changed(f, tokenizer=str(f / "damaged_template")),
    "OuroConfig.early_exit_threshold must be a number": lambda f: changed(f, model=str(f / "threshold")),
    "nothing to learn from: 0 of 24 conversations kept": lambda f: changed(f, data=replace(config(f).data, max_len=3)),
}


@pytest.fixture(scope="module")
def models(folder) -> Path:
    write_models(folder)
    return folder


@pytest.mark.parametrize("message", COMMANDS)
def test_by_command_what_is_wrong_is_one_line_before_any_update(models, tmp_path, monkeypatch, capfd, message):
    write_json(tmp_path / "config.json", COMMANDS[message](models))
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["tensorboard"])
    if "processes (8 x 2)" in message:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setattr(job.Processes, "from_environment", lambda: job.Processes(0, 2, "cpu"))
    assert_one_line(tmp_path / "config.json", tmp_path / "run", message, capfd)
    assert not (tmp_path / "run" / "metrics.jsonl").exists() and not (tmp_path / "run" / "checkpoints").exists()


def assert_one_line(config_file: Path, run_dir: Path, message: str, capfd) -> None:
    status = run(job.main, [str(config_file), str(run_dir)])
    said = [line for line in capfd.readouterr().err.splitlines() if "error" in line.lower() or "Traceback" in line]
    assert status == 2 and len(said) == 1 and said[0].startswith("error: ") and message in said[0]


def test_by_command_other_settings_a_torn_file_and_none(models, tmp_path, capfd):
    write_json(tmp_path / "run" / "finetune.json", to_dict(config(models)))
    write_json(tmp_path / "config.json", changed(models, seed=9, data=replace(config(models).data, max_len=100)))
    for file, message in (
        (tmp_path / "config.json", "is of a run with other settings (data.max_len, seed): choose another folder, or delete it"),
        (models / "torn.json", "torn.json: not JSON"),
        (models / "none.json", "none.json"),
    ):
        assert_one_line(file, tmp_path / "run", message, capfd)
    check_config(config(models), tmp_path / "run")  # its own settings are welcome
    older = {name: value for name, value in to_dict(config(models)).items() if name != "entropy_weight"}
    write_json(tmp_path / "run" / "finetune.json", older)  # written before there was such a field
    check_config(config(models), tmp_path / "run")


def test_a_checkpoint_of_another_model_is_refused(models, tmp_path):
    """The folder that the run started from has become another model's."""
    model = shutil.copytree(models / "start", tmp_path / "model")
    c = replace(config(models, steps=2), model=str(model))
    job.finetune(c, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(model)
    OuroForCausalLM(OuroConfig.from_pretrained(models / "wider")).save_pretrained(model)
    with pytest.raises(ConfigError, match="step_00000002' are not this model's: mismatched_keys"):
        job.finetune(c, tmp_path / "run")

"""Evaluations by preset: what each measures, what may be named instead, and what cannot be read."""

import json
import shutil

import pytest
from learned_ouro import TOKENIZER

from looped_lib.core.checks import ConfigError
from looped_lib.core.project import find_root
from looped_lib.ouro.evaluate import presets
from looped_lib.ouro.evaluate.cells import EvaluationConfig
from looped_lib.ouro.evaluate.checkpoint import fingerprint
from looped_lib.ouro.evaluate.paper import TASKS
from looped_lib.ouro.evaluate.presets import evaluation, write_random
from looped_lib.ouro.model.configuration import OuroConfig


@pytest.fixture
def runs(tmp_path):
    """Two small models of notebook 05, and one of Ouro-1.4B's size."""
    for name, vocab_size in (("base-seed0", 512), ("stars-seed0", 512), ("stars-seed74", 49_152)):
        OuroConfig(vocab_size=vocab_size).save_pretrained(tmp_path / "runs" / name / "model")
    return tmp_path / "runs"


def test_paper_is_the_papers_recipe_on_ouro_and_its_fine_tunings(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "find_spec", lambda name: name)
    config = evaluation("paper", tmp_path, str(runs))
    assert config.checkpoints == {"base": "ByteDance/Ouro-1.4B", "stars-seed74": str(runs / "stars-seed74" / "model")}
    assert config.tasks == TASKS and config.depths == (4, 8) and config.backend == "vllm" and config.limit == 0
    recipe = EvaluationConfig()
    assert config.decisive() == recipe.decisive() and (config.max_len, config.max_new_tokens) == (4096, 2048)
    assert (recipe.fewshot, recipe.temperature, recipe.chat_template) == (0, 0, True)
    assert recipe.system_prompt == "You are a helpful assistant that can assist users with reasoning."
    monkeypatch.setattr(presets, "find_spec", lambda name: None)
    assert evaluation("paper", tmp_path, str(runs)).backend == "transformers"


def test_cpu_takes_the_small_models_as_they_were_trained(runs, tmp_path):
    config = evaluation("cpu", tmp_path, str(runs))
    assert list(config.checkpoints) == ["base-seed0", "stars-seed0"] and config.tasks == ("word_problems",)
    assert config.backend == "transformers" and config.system_prompt == "" and config.dtype == "float32"
    assert {4, 8, 16} <= set(config.depths)


def test_cpu_without_models_says_where_they_come_from(tmp_path):
    with pytest.raises(ConfigError, match="no small models under .*: run notebook 05"):
        evaluation("cpu", tmp_path, str(tmp_path))


def test_smoke_makes_its_own_model_the_same_each_time(tmp_path):
    config = evaluation("smoke", tmp_path)
    weights = fingerprint(write_random(tmp_path / "again"))
    assert fingerprint(tmp_path / "random_weights") == weights and config.limit == 4
    assert config.checkpoints == {"random": str(tmp_path / "random_weights")}
    assert (tmp_path / "random_weights" / "tokenizer.json").exists() and len(TOKENIZER) <= 512


def test_what_is_named_is_what_is_measured(tmp_path):
    given = {"checkpoints": "a=x/y b=/z", "tasks": "svamp mine", "depths": "1 16", "data": "svamp=/s.jsonl", "limit": 7}
    config = evaluation("cpu", tmp_path, backend="vllm", task_folder="/tasks", **given)
    assert not config.exits
    exits = evaluation("cpu", tmp_path, **given, exits="gate=0.5 kl=0.01 gate=0.9").exits
    assert exits == {"gate": (0.5, 0.9), "kl": (0.01,)}
    assert config.checkpoints == {"a": "x/y", "b": "/z"} and config.tasks == ("svamp", "mine") and config.depths == (1, 16)
    assert config.data == {"svamp": "/s.jsonl"} and config.limit == 7 and config.task_folder == "/tasks"
    assert config.engine == presets.SMALL_VLLM
    assert evaluation("paper", tmp_path, depths=8, checkpoints="a=b").depths == (8,)  # as papermill's -p depths 8 has it


def test_paths_may_start_at_the_projects_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(find_root() / "notebooks")  # where notebooks run
    config = evaluation(
        "smoke", tmp_path, checkpoints="a=data/tokenizer b=owner/name", data="svamp=data/README.md", tasks="svamp"
    )
    assert config.checkpoints == {"a": str(find_root() / "data" / "tokenizer"), "b": "owner/name"}
    assert config.data == {"svamp": str(find_root() / "data" / "README.md")}


def test_checkpoints_of_runs_are_measured_if_asked_for(runs, tmp_path):
    """Those of a run at work, which has no model yet, too."""
    model = runs / "base-seed0" / "model"
    for run, step in (("base-seed0", 20), ("base-seed0", 300), ("new-seed0", 20)):
        shutil.copytree(model, runs / run / "checkpoints" / f"step_{step:08d}")
    plain, every = (evaluation("cpu", tmp_path, str(runs), every_step=every).checkpoints for every in (False, True))
    more = {f"{run}.step_{n}" for run, n in (("base-seed0", 20), ("base-seed0", 300), ("new-seed0", 20))}
    assert set(every) == set(plain) | more and "base-seed0" in plain
    assert every["new-seed0.step_20"] == str(runs / "new-seed0" / "checkpoints" / "step_00000020")


def test_quotes_keep_the_spaces_of_a_path(tmp_path):
    given = {"checkpoints": "a='/my runs/a' \"b=/b c\"", "tasks": "svamp 'my task'", "data": "'my task=/d e.jsonl'"}
    config = evaluation("cpu", tmp_path, **given)
    assert config.checkpoints == {"a": "/my runs/a", "b": "/b c"} and config.tasks == ("svamp", "my task")
    assert config.data == {"my task": "/d e.jsonl"}


def test_a_lora_run_is_measured_and_a_broken_one_stops_nothing(runs, tmp_path):
    adapter = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": str(runs / "base-seed0" / "model")}
    (runs / "lora-seed0" / "model").mkdir(parents=True)
    (runs / "lora-seed0" / "model" / "adapter_config.json").write_text(json.dumps(adapter))
    (runs / "empty-seed0" / "model").mkdir(parents=True)
    with pytest.warns(UserWarning, match="empty-seed0/model is left out: "):
        config = evaluation("cpu", tmp_path, str(runs))
    assert list(config.checkpoints) == ["base-seed0", "lora-seed0", "stars-seed0"]


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"preset": "cpus"}, "preset must be one of smoke, cpu, paper, got 'cpus'"),
        ({"checkpoints": "runs/a"}, "checkpoints must be name=path"),
        ({"checkpoints": "a= b"}, "checkpoints must be name=path"),
        ({"checkpoints": "a='b c"}, "checkpoints: .* cannot be split at its spaces: No closing quotation"),
        ({"depths": "4,8"}, "depths must be loop counts with spaces between, got '4,8'"),
        ({"exits": "gate"}, "exits must be criterion=threshold, with spaces between several, got 'gate'"),
        ({"backend": "vlm"}, "backend must be one of 'vllm', 'transformers'"),
    ],
)
def test_what_cannot_be_read_is_named(given, expected, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        evaluation(**{"preset": "smoke", "out": tmp_path, **given})

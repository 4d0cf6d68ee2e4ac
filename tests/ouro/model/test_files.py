"""The official files: configuration, weight names and sizes are read, and written back, without remote code."""

import json
from pathlib import Path

import pytest
import torch
from other_ouro import logits, states
from safetensors import safe_open
from tiny_ouro import random_ids, sizes_of, tiny
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from looped_lib.ouro.model import configuration, modeling, stack
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM, OuroModel

OFFICIAL = """{
  "architectures": ["OuroForCausalLM"],
  "attention_dropout": 0.0,
  "auto_map": {
    "AutoConfig": "configuration_ouro.OuroConfig",
    "AutoModel": "modeling_ouro.OuroModel",
    "AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM"
  },
  "bos_token_id": 0,
  "early_exit_threshold": 1.0,
  "eos_token_id": 0,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 2048,
  "initializer_range": 0.02,
  "intermediate_size": 5632,
  "layer_types": [LAYER_TYPES],
  "max_position_embeddings": 65536,
  "max_window_layers": LAYERS,
  "model_type": "ouro",
  "num_attention_heads": 16,
  "num_hidden_layers": LAYERS,
  "num_key_value_heads": 16,
  "rms_norm_eps": 1e-06,
  "rope_scaling": null,
  "rope_theta": 1000000.0,
  "sliding_window": null,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "total_ut_steps": 4,
  "transformers_version": "4.55.0",
  "use_cache": true,
  "use_sliding_window": false,
  "vocab_size": 49152
}"""
OFFICIAL_KEYS = OFFICIAL.replace("[LAYER_TYPES]", "[]").replace("LAYERS", "0")
UNUSED = ("max_window_layers", "use_sliding_window", "sliding_window")
SMALL = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
SMALL |= {"vocab_size": 48, "rope_theta": 5e5, "torch_dtype": "float32"}


def official(folder, layers=24, **changes):
    """A folder with the official config.json, `changes` applied."""
    text = OFFICIAL.replace("LAYER_TYPES", ", ".join(['"full_attention"'] * layers)).replace("LAYERS", str(layers))
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**json.loads(text), **changes}))
    return folder


def names_of(layers):
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    names |= {"model.early_exit_gate.weight", "model.early_exit_gate.bias"}
    for i in range(layers):
        names |= {f"model.layers.{i}.self_attn.{x}_proj.weight" for x in "qkvo"}
        names |= {f"model.layers.{i}.mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
        names |= {f"model.layers.{i}.{x}_layernorm{n}.weight" for x in ("input", "post_attention") for n in ("", "_2")}
    return names


@pytest.mark.parametrize(("layers", "parameters"), [(24, 1_434_652_673), (48, 2_667_974_657)])
def test_the_official_configuration_is_read_and_has_the_official_size_and_names(tmp_path, layers, parameters):
    config = AutoConfig.from_pretrained(official(tmp_path, layers))
    assert type(config) is OuroConfig and config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert (config.total_ut_steps, config.early_exit_threshold, config.dtype) == (4, 1.0, torch.bfloat16)
    assert (config.bos_token_id, config.eos_token_id, config.tie_word_embeddings) == (0, 0, False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert type(model) is OuroForCausalLM and sum(p.numel() for p in model.parameters()) == parameters
    assert set(model.state_dict()) == names_of(layers)


def test_the_defaults_are_those_of_the_smaller_model(tmp_path):
    read, default = AutoConfig.from_pretrained(official(tmp_path)).to_dict(), OuroConfig().to_dict()
    for key in ("_name_or_path", "architectures", "dtype", "layer_types", *UNUSED):
        read.pop(key, None), default.pop(key, None)
    assert read == default


def test_a_folder_is_written_as_it_was_read(tmp_path):
    """Save, load, save: the same names, numbers and configuration, and never a pointer to remote code."""
    model = OuroForCausalLM(AutoConfig.from_pretrained(official(tmp_path / "config", 2, **SMALL)))
    torch.nn.init.normal_(model.model.early_exit_gate.bias)
    model.save_pretrained(tmp_path / "first")
    first = json.loads((tmp_path / "first" / "config.json").read_text())
    renamed = {"auto_map", "torch_dtype", *UNUSED}
    assert json.loads(OFFICIAL_KEYS).keys() - first.keys() <= renamed and first["dtype"] == "float32"
    assert "auto_map" not in first and first["rope_theta"] == 5e5 and first["rope_scaling"] is None
    assert first["architectures"] == ["OuroForCausalLM"] and first["model_type"] == "ouro"
    official(tmp_path / "first", 2, **SMALL)  # the official file, remote code and all, beside these weights
    ids, expected = random_ids(1, 5), model(random_ids(1, 5)).logits
    for how in ({}, {"trust_remote_code": True}):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "first", **how)
        assert type(again) is OuroForCausalLM and torch.equal(again(ids).logits, expected)
    stack = AutoModel.from_pretrained(tmp_path / "first")
    assert type(stack) is OuroModel and torch.equal(again.readout(stack(ids).last_hidden_state), expected)
    again.save_pretrained(tmp_path / "second")
    assert json.loads((tmp_path / "second" / "config.json").read_text()) == {**first, "max_window_layers": 2}
    with safe_open(tmp_path / "second" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == names_of(2)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}], ids=str)
def test_scaled_positions_survive_the_file(tmp_path, scaling):
    model = tiny(rope_scaling=scaling)
    model.save_pretrained(tmp_path)
    again, ids = AutoModelForCausalLM.from_pretrained(tmp_path), random_ids(1, 9)
    assert again.config.rope_parameters["rope_theta"] == 50.0 and sizes_of(again).rope_factor == 2.0
    expected = logits(again.state_dict(), states(again.state_dict(), ids, 4, sizes_of(again))[-1])
    torch.testing.assert_close(again(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_tied_embeddings_are_stored_once(tmp_path):
    model, ids = tiny(tie_word_embeddings=True), random_ids(1, 5)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == names_of(3) - {"lm_head.weight"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight and torch.equal(again(ids).logits, model(ids).logits)


def test_weights_of_another_size_are_refused_and_missing_ones_reported(tmp_path):
    """transformers refuses a wrong shape; a weight that is not there it only names, in `missing_keys` and a warning."""
    tiny().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        OuroForCausalLM.from_pretrained(tmp_path, config=tiny(intermediate_size=48).config)
    deeper = tiny(num_hidden_layers=4).config
    _, info = OuroForCausalLM.from_pretrained(tmp_path, config=deeper, output_loading_info=True)
    assert info["missing_keys"] == names_of(4) - names_of(3)
    _, info = OuroForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())


@pytest.mark.parametrize(("given", "meant"), [(None, 1.0), (1, 1.0), (0.5, 0.5)])
def test_thresholds_as_people_write_them(tmp_path, given, meant):
    assert AutoConfig.from_pretrained(official(tmp_path, early_exit_threshold=given)).early_exit_threshold == meant


@pytest.mark.parametrize("given", ["0.5", [1], True, -1, float("nan"), 10**400], ids=lambda value: str(value)[:9])
def test_a_wrong_threshold_is_named(tmp_path, given):
    with pytest.raises(ValueError, match=r"^OuroConfig\.early_exit_threshold must be a number in \[0, inf\), got"):
        AutoConfig.from_pretrained(official(tmp_path, early_exit_threshold=given))


@pytest.mark.parametrize("module", [configuration, stack, modeling], ids=lambda module: module.__name__)
def test_what_is_registered_already_is_registered_anew(module):
    """As on the day that transformers has an Ouro of its own."""
    lines = [line for line in Path(module.__file__).read_text().splitlines() if ".register(" in line]
    assert len(lines) == 1
    exec(lines[0], vars(module))


def test_sizes_an_ouro_cannot_have_are_refused():
    for changes, message in (
        ({"num_key_value_heads": 3}, r"num_key_value_heads must divide num_attention_heads \(4\): 3"),
        ({"total_ut_steps": 0}, "total_ut_steps must be at least 1 loop, got 0"),
        ({"vocab_size": -1}, "vocab_size must be at least 1, got -1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be at least 1, got 0"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types must be full_attention"),
        ({"hidden_size": 30}, "hidden size"),
    ):
        with pytest.raises(Exception, match=message):
            tiny(**changes)

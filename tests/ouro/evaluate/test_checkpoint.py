"""A checkpoint is a model or an adapter on one, and runs the loops it is asked for whatever its exit gate says."""

import json
from pathlib import Path

import pytest
import torch
from learned_ouro import PROMPTS, TOKENIZER, write_adapter
from peft import PeftModel
from tiny_ouro import tiny

from looped_lib.core.checks import ConfigError
from looped_lib.ouro.evaluate.checkpoint import find_checkpoint, fingerprint
from looped_lib.ouro.evaluate.drafts import greedy_texts
from looped_lib.ouro.model.modeling import OuroForCausalLM

IDS = torch.arange(3, 15)[None]


def write_base(folder: Path, **config) -> Path:
    tiny(vocab_size=512, **config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def test_an_adapter_is_measured_on_its_base(tmp_path, monkeypatch):
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "run" / "model", "base", OuroForCausalLM.from_pretrained(base))
    monkeypatch.chdir(tmp_path)  # where the base's name, a relative path, leads to it
    found = find_checkpoint(str(adapter))
    assert (found.base, found.adapter) == (str(base), adapter) and found.is_here
    peft = PeftModel.from_pretrained(OuroForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        logits = found.model("float32", total_ut_steps=3)(IDS).logits
        torch.testing.assert_close(logits, peft(IDS, n_loops=3).logits)
        assert not torch.allclose(logits, find_checkpoint(str(base)).model("float32", total_ut_steps=3)(IDS).logits)
    assert len(found.tokenizer()) == len(TOKENIZER)


def test_an_adapter_of_zeros_changes_nothing_at_any_type(tmp_path):
    """Nor the frequencies of the positions, which stay in float32."""
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base, OuroForCausalLM.from_pretrained(base), std=0.0)
    with torch.no_grad():
        plain, adapted = (find_checkpoint(str(path)).model("bfloat16") for path in (base, adapter))
        assert torch.equal(plain(IDS).logits, adapted(IDS).logits) and adapted.dtype == torch.bfloat16


def test_the_fingerprint_is_of_base_and_adapter(tmp_path):
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base, OuroForCausalLM.from_pretrained(base))
    found = find_checkpoint(str(adapter))
    before = found.weights()
    assert before == f"{fingerprint(base)}+{fingerprint(adapter)}" != find_checkpoint(str(base)).weights()
    other = OuroForCausalLM.from_pretrained(base)
    other.lm_head.weight.data[0, 0] += 1
    other.save_pretrained(base)
    assert found.weights() != before


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA", "r": 4, "base_model_name_or_path": "x"}))
    with pytest.raises(ConfigError, match="adapter_config.json must be of a LoRA adapter"):
        find_checkpoint(str(tmp_path))


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_depth_is_that_depth_whatever_the_exit_threshold(threshold, tmp_path):
    base = write_base(tmp_path / "eager", early_exit_threshold=threshold)
    raw = OuroForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        every_loop = raw(IDS, n_loops=6, exit_threshold=1.0).logits
        assert torch.equal(find_checkpoint(str(base)).model("float32", total_ut_steps=6)(IDS).logits, every_loop)
        assert not torch.allclose(raw(IDS, n_loops=6).logits, every_loop)
    prompts = [TOKENIZER(prompt).input_ids for prompt in PROMPTS[:2]]
    fixed = OuroForCausalLM.from_pretrained(base, early_exit_threshold=1.0).eval()
    assert greedy_texts(raw, prompts, [6], 8, [0]) == greedy_texts(fixed, prompts, [6], 8, [0])

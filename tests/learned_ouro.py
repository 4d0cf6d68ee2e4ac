"""An Ouro of the preset `cpu` that has all but learned the first word problems of data/ by heart, at 3 loops."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from looped_lib.core.project import find_root
from looped_lib.ouro.evaluate.accuracy import END_OF_TURN
from looped_lib.ouro.finetune import presets
from looped_lib.ouro.finetune.data import prompt_text
from looped_lib.ouro.model.modeling import OuroConfig, OuroForCausalLM

TOKENIZER = AutoTokenizer.from_pretrained(find_root() / "data" / "tokenizer")
ROWS = [json.loads(line) for line in (find_root() / "data" / "word_problems" / "test.jsonl").read_text().splitlines()[:20]]
PROMPTS = [prompt_text(TOKENIZER, row["problem"], "") for row in ROWS]


def write_learned(folder: Path) -> OuroForCausalLM:
    """Train it and save it with its tokenizer: a second or two."""
    torch.manual_seed(0)
    model = OuroForCausalLM(OuroConfig.from_pretrained(presets.write_architecture(folder, "cpu")))
    prompts = [TOKENIZER(prompt).input_ids for prompt in PROMPTS]
    ends = [TOKENIZER(row["solution"] + END_OF_TURN).input_ids for row in ROWS]
    length = max(len(p) + len(e) for p, e in zip(prompts, ends, strict=True))
    ids = torch.tensor([(p + e + [0] * length)[:length] for p, e in zip(prompts, ends, strict=True)])
    labels = torch.tensor([([-100] * len(p) + e + [-100] * length)[:length] for p, e in zip(prompts, ends, strict=True)])
    optimizer = torch.optim.AdamW(model.parameters(), 6e-3)
    for _ in range(33):
        logits = model(ids[:, :-1], n_loops=3).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return model.eval()


def write_adapter(folder: Path, base: Path | str, model: OuroForCausalLM, std: float = 0.1) -> Path:
    """A random adapter, of what `model` is, that says it is of `base`."""
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=std)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder

"""Accuracy by loop count against decoding every problem at every depth, one at a time."""

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import find_root
from looped_lib.ouro.evaluate.accuracy import ROOM, accuracy_by_depth, measure
from looped_lib.ouro.finetune.data import prompt_text
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM
from looped_lib.tasks.word_problems import final_answer, generate

TOKENIZER = AutoTokenizer.from_pretrained(find_root() / "data" / "tokenizer")
LEARNED = [{**row, "solution": f"\\boxed{{{row['answer']}}}." + " Yes." * (i % 3)} for i, row in enumerate(generate(8, seed=1))]
ROWS = [
    *LEARNED,
    *generate(3, seed=2),  # never seen
    {**LEARNED[0], "answer": "7"},  # its solution is written, but is wrong
    {**LEARNED[1], "solution": f"The answer is \\boxed{{{LEARNED[1]['answer']}}}."},  # another text ends well
]
DEPTHS = [1, 2, 3, 4, 6]


def tokens(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


@pytest.fixture(scope="module")
def model() -> OuroForCausalLM:
    """Has learned LEARNED by heart with two loops."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = OuroForCausalLM(OuroConfig(**sizes, rope_theta=1e4, initializer_range=0.2))
    prompts = [tokens(prompt_text(TOKENIZER, row["problem"], "")) for row in LEARNED]
    ends = [tokens(row["solution"] + "<|im_end|>") for row in LEARNED]
    ids = pad_sequence([torch.tensor(p + e) for p, e in zip(prompts, ends, strict=True)], batch_first=True)
    labels = torch.full_like(ids, -100)
    for i, (p, e) in enumerate(zip(prompts, ends, strict=True)):
        labels[i, len(p) : len(p) + len(e)] = torch.tensor(e)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        logits = model(ids, n_loops=2).logits[:, :-1]
        F.cross_entropy(logits.transpose(1, 2), labels[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def by_hand(model) -> torch.Tensor:
    """Solved or not [problem depth]: unpadded, uncached greedy decoding, one token at a time."""
    room = max(len(tokens(row["solution"] + "<|im_end|>")) for row in ROWS) + ROOM
    solved = torch.zeros(len(ROWS), len(DEPTHS), dtype=torch.bool)
    with torch.no_grad():
        for i, row in enumerate(ROWS):
            prompt = tokens(prompt_text(TOKENIZER, row["problem"], ""))
            for d, depth in enumerate(DEPTHS):
                ids = list(prompt)
                while len(ids) < len(prompt) + room and (len(ids) == len(prompt) or ids[-1] not in (0, 2)):
                    ids.append(int(model(torch.tensor([ids]), n_loops=depth).logits[0, -1].argmax()))
                solved[i, d] = final_answer(TOKENIZER.decode(ids[len(prompt) :], skip_special_tokens=True)) == row["answer"]
    return solved


def test_accuracy_is_that_of_decoding_everything(model, by_hand):
    found = accuracy_by_depth(model, TOKENIZER, ROWS, DEPTHS)
    assert torch.equal(found.correct, by_hand) and found.depths == DEPTHS
    assert found.accuracy == by_hand.double().mean(0).tolist()
    assert by_hand[:8, 1].all() and not by_hand[8:11].any()  # depth 2, and what it never saw
    assert not by_hand[11].any() and by_hand[12, 1]
    assert 0 < by_hand[:8, 2:].float().mean() < 1  # other depths solve some
    assert by_hand.numel() - found.decoded >= 8  # a solution that is greedy is not decoded
    assert found.decoded >= (~by_hand).sum() - 5  # all that is wrong is, but for row 11


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_order_of_rows_and_depths_and_batches_do_not_matter(model, by_hand, at_once):
    order = list(range(len(ROWS)))
    random.Random(at_once).shuffle(order)
    found = accuracy_by_depth(model, TOKENIZER, [ROWS[i] for i in order], [6, 2, 2, 1], at_once=at_once)
    assert found.depths == [1, 2, 6]
    assert torch.equal(found.correct, by_hand[order][:, [0, 1, 4]])


def test_a_system_prompt_belongs_to_the_conversation(model):
    """With one, the model that learned without solves other problems."""
    plain, told = (accuracy_by_depth(model, TOKENIZER, LEARNED, [2], system).accuracy for system in ("", "Be a pirate."))
    assert plain == [1.0] and told < [1.0]


def test_a_training_model_goes_on_training(model):
    model.train()
    accuracy_by_depth(model, TOKENIZER, ROWS[:1], [1])
    assert model.training
    model.eval()


@pytest.mark.parametrize("rows, depths", [([], [1]), (ROWS, []), (ROWS, [0, 1])])
def test_nothing_to_measure_is_an_error(model, rows, depths):
    with pytest.raises(ValueError, match="needs rows and depths of at least 1"):
        accuracy_by_depth(model, TOKENIZER, rows, depths)


def test_a_run_is_measured_once(model, tmp_path: Path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="not the folder of a finished run"):
        measure(tmp_path, [1, 2], problems=4)
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    accuracy = measure(tmp_path, [1, 2], problems=4, progress=False)
    record = read_json(tmp_path / "depths.json")
    assert record["accuracy"] == accuracy and len(accuracy) == 2 and record["provenance"]["versions"]["torch"]
    write_json(tmp_path / "depths.json", record | {"accuracy": [0.25, 0.5]})
    assert measure(tmp_path, [1, 2], problems=4) == [0.25, 0.5]  # kept
    assert measure(tmp_path, [1, 2], problems=3, progress=False) == accuracy  # asked for something else
    monkeypatch.setattr("looped_lib.ouro.evaluate.accuracy.accuracy_by_depth", lambda *a, **k: pytest.fail("measured again"))
    measure(tmp_path, [1, 2], problems=3)

"""Exact match of the final answer against loop count, by greedy decoding.

A problem counts as solved at depth T if the \\boxed{} answer of the text decoded with T loops is the right one. The reference
solution is the draft of all depths (`drafts`): one pass over the loops finds the depths that write it, and how far the others do;
only what these write instead is decoded.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import find_root
from looped_lib.ouro.evaluate.checkpoint import find_checkpoint
from looped_lib.ouro.evaluate.drafts import greedy_texts
from looped_lib.ouro.finetune.data import prompt_text
from looped_lib.ouro.finetune.folder import MODEL
from looped_lib.ouro.model.modeling import OuroForCausalLM
from looped_lib.runs.folders import provenance
from looped_lib.tasks.word_problems import final_answer

END_OF_TURN = "<|im_end|>"
ROOM = 16  # tokens a text may be longer than the longest reference solution


@dataclass(frozen=True)
class Depths:
    """Which problems a model solves at which loop counts."""

    depths: list[int]
    """Loop counts measured."""
    correct: Bool[Tensor, "problem depth"]
    """Solved or not."""
    decoded: int
    """Pairs of problem and depth that write something else than the reference solution."""

    @property
    def accuracy(self) -> list[float]:
        """Share of the problems solved at each depth, 0 to 1."""
        return self.correct.double().mean(0).tolist()


def accuracy_by_depth(
    model: OuroForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, str]],
    depths: Sequence[int],
    system_prompt: str = "",
    at_once: int = 250,
    progress: bool = False,
) -> Depths:
    """Solve the `rows` (problem, solution, answer) at every loop count in `depths`. ValueError without rows or depths."""
    depths = sorted(set(depths))
    if not rows or not depths or depths[0] < 1:
        raise ValueError(f"accuracy_by_depth needs rows and depths of at least 1, got {len(rows)} rows and depths {depths}")
    prompts = [tokenizer(prompt_text(tokenizer, r["problem"], system_prompt), add_special_tokens=False).input_ids for r in rows]
    ends = [tokenizer(r["solution"] + END_OF_TURN, add_special_tokens=False).input_ids for r in rows]
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]) + len(ends[i]))  # little padding
    stops = {tokenizer.convert_tokens_to_ids(END_OF_TURN), tokenizer.eos_token_id}
    correct = torch.zeros(len(rows), len(depths), dtype=torch.bool)
    room, decoded = max(map(len, ends)) + ROOM, 0
    with tqdm(total=len(rows), desc="word problems", disable=not progress, unit="problem") as bar:
        for start in range(0, len(rows), at_once):
            some = order[start : start + at_once]
            drafts = [ends[i] for i in some]
            found = greedy_texts(model, [prompts[i] for i in some], depths, room, stops, at_once, drafts)
            for i, texts in zip(some, found, strict=True):
                said = tokenizer.batch_decode(list(texts.values()), skip_special_tokens=True)
                correct[i] = torch.tensor([final_answer(text) == rows[i]["answer"] for text in said])
                decoded += sum(text != ends[i] for text in texts.values())
            bar.update(len(some))
    return Depths(depths, correct, decoded)


def measure(run_dir: str | Path, depths: Sequence[int], problems: int = 500, progress: bool = True) -> list[float]:
    """Accuracy of a finished word-problem run at each of `depths`, on the first `problems` held-out ones; kept in depths.json.

    FileNotFoundError if the run has no model yet.
    """
    run_dir, asked = Path(run_dir), {"depths": list(depths), "problems": problems}
    path, folder = run_dir / "depths.json", run_dir / MODEL
    if path.exists() and (known := read_json(path)).items() >= asked.items():
        return known["accuracy"]
    if not folder.exists():
        raise FileNotFoundError(f"{folder} is missing: {run_dir} is not the folder of a finished run")
    file = find_root() / "data" / "word_problems" / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][:problems]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = find_checkpoint(str(folder))
    model = checkpoint.model(torch.float32).to(device)
    with threadpool_limits(1):  # on matrices of a small model two threads mostly wait for each other
        found = accuracy_by_depth(model, checkpoint.tokenizer(), rows, depths, progress=progress)
    write_json(path, {**asked, "accuracy": found.accuracy, "decoded": found.decoded, "provenance": provenance()})
    return found.accuracy

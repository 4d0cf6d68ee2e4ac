"""Exact match of the final answer against loop count, by greedy decoding.

A problem counts as solved at depth T if the \\boxed{} answer of the text decoded with T loops is the right one. Decoding every
problem at every depth is slow, and mostly not needed: if, given the reference solution, every argmax at depth T is the next
reference token, then greedy decoding writes exactly that solution (the proof is in `dynamics.depth`). One pass over the loops
finds these for all depths; only the other pairs of problem and depth, where another text may still end well, are decoded.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import find_root
from looped_lib.models.looped import evaluating
from looped_lib.ouro.evaluate.checkpoint import find_checkpoint
from looped_lib.ouro.finetune.data import prompt_text
from looped_lib.ouro.finetune.folder import MODEL
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
    """Pairs of problem and depth that had to be decoded."""

    @property
    def accuracy(self) -> list[float]:
        """Share of the problems solved at each depth, 0 to 1."""
        return self.correct.double().mean(0).tolist()


def accuracy_by_depth(
    model: PreTrainedModel,
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
    chunks = [order[i : i + at_once] for i in range(0, len(order), at_once)]
    worth = torch.tensor([final_answer(row["solution"]) == row["answer"] for row in rows])  # of writing the reference solution
    correct = torch.zeros(len(rows), len(depths), dtype=torch.bool)
    room, decoded = max(map(len, ends)) + ROOM, 0
    with (
        torch.inference_mode(),
        evaluating(model),
        tqdm(total=len(chunks) * len(depths), disable=not progress, unit="depth") as bar,
    ):
        for chunk in chunks:
            right = _reference_is_greedy(model, [prompts[i] for i in chunk], [ends[i] for i in chunk], depths)
            for d, depth in enumerate(depths):
                open_ = [i for i, known in zip(chunk, right[:, d].tolist(), strict=True) if not known]
                texts = _decode(model, tokenizer, [prompts[i] for i in open_], depth, room) if open_ else []
                for i, text in zip(open_, texts, strict=True):
                    correct[i, d] = final_answer(text) == rows[i]["answer"]
                correct[chunk, d] |= right[:, d] & worth[chunk]
                decoded += len(open_)
                bar.update()
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


def _reference_is_greedy(
    model: PreTrainedModel, prompts: list[list[int]], ends: list[list[int]], depths: list[int]
) -> Bool[Tensor, "problem depth"]:
    """Whether greedy decoding writes the reference solution, at every depth from one pass over the loops."""
    device = model.device
    ids = pad_sequence([torch.tensor(p + e) for p, e in zip(prompts, ends, strict=True)], batch_first=True).to(device)
    prompt_len = torch.tensor([len(p) for p in prompts], device=device)[:, None]
    whole_len = prompt_len + torch.tensor([len(e) for e in ends], device=device)[:, None]
    position = torch.arange(1, ids.shape[1], device=device)
    learned = (position >= prompt_len) & (position < whole_len)
    h, right = model.embed(ids[:, :-1]), []
    for t in range(1, depths[-1] + 1):
        h = model.step(h)  # padding is on the right, where no real position sees it
        if t in depths:
            right.append(((model.readout(h).argmax(-1) == ids[:, 1:]) | ~learned).all(1))
    return torch.stack(right, 1).cpu()


def _decode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], depth: int, room: int
) -> list[str]:
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    stops: list[int] = [tokenizer.convert_tokens_to_ids(END_OF_TURN), tokenizer.eos_token_id]
    out: Int[Tensor, "problem seq"] = model.generate(
        **batch,
        n_loops=depth,
        exit_threshold=1.0,  # whatever the config says: T is T
        do_sample=False,
        max_new_tokens=room,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

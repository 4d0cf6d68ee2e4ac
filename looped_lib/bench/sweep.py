"""Every depth from 1 to 16 at once against each depth by itself: answers, and log-likelihoods.

The model has the shape of the preset `cpu`, and learns some word problems of data/ by heart. What a sweep saves on answers
depends on how far depths write alike, so there are two models: one that learns at many loop counts, whose depths agree, and one
that learns at 4 only, whose depths do not.

Answers by themselves are those of transformers' `generate`, all problems at once, as the harness's transformers backend asks for
them. Likelihoods by themselves are our own form, one depth at a time: 136 loops against 16. One thread: on matrices of a small
model two mostly wait for each other.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoTokenizer

from looped_lib.core.project import find_root
from looped_lib.ouro.evaluate.accuracy import END_OF_TURN
from looped_lib.ouro.evaluate.drafts import greedy_texts
from looped_lib.ouro.evaluate.likelihood import Request, log_likelihoods
from looped_lib.ouro.finetune import presets
from looped_lib.ouro.finetune.data import prompt_text
from looped_lib.ouro.model.modeling import OuroForCausalLM

MANY = (1, 2, 3, 4, 6, 9)  # loop counts to learn at, so that all depths agree
_PARTING = 1e-4  # of a logit; between tokens that are closer, rounding decides


def measure_answers(problems: int = 16, depths: Sequence[int] = range(1, 17), steps: int = 100) -> dict[str, tuple[float, str]]:
    """{name: (ratio, what was compared)}. RuntimeError if two answers part otherwise than at a tie."""
    requests, stops = word_problems(problems)
    prompts, room, found = [prompt for prompt, _ in requests], max(len(text) for _, text in requests) + 4, {}
    for name, loops in (("generation_sweep_vs_separate", MANY), ("generation_sweep_vs_separate_parting", (4,))):
        model = learned(requests, loops, steps)
        with threadpool_limits(1):
            ours, our_s = _timed(lambda model=model: greedy_texts(model, prompts, depths, room, stops))
            theirs, their_s = _timed(lambda model=model: [generated(model, prompts, d, room, stops) for d in depths])
        for k, depth in enumerate(depths):
            for prompt, answers, text in zip(prompts, ours, theirs[k], strict=True):
                _check_alike(model, prompt, depth, answers[depth], text)
        distinct = sum(len(set(map(tuple, answers.values()))) for answers in ours) / len(ours)
        said = f"separate {their_s:.1f} s, sweep {our_s:.1f} s; {distinct:.1f} different texts a problem"
        found[name] = (their_s / our_s, said)
    return found


def measure_likelihoods(problems: int = 32, depths: Sequence[int] = range(1, 17)) -> dict[str, tuple[float, str]]:
    """{name: (ratio, what was compared)}. RuntimeError if the two forms disagree."""
    requests, _ = word_problems(problems)
    model = learned(requests, (4,), steps=0)
    with threadpool_limits(1):
        log_likelihoods(model, requests, depths[:1])  # a first call pays for memory
        ours, our_s = _timed(lambda: log_likelihoods(model, requests, depths))
        theirs, their_s = _timed(lambda: [log_likelihoods(model, requests, [depth]) for depth in depths])
    if not torch.allclose(ours.log_p, torch.cat([one.log_p for one in theirs]), rtol=1e-5, atol=1e-4):
        raise RuntimeError("one pass over the loops and a pass for each depth give different likelihoods")
    return {"likelihood_sweep_vs_separate": (their_s / our_s, f"separate {their_s:.2f} s, sweep {our_s:.2f} s")}


def word_problems(n: int) -> tuple[list[Request], set[int]]:
    """The first held-out problems with their solutions, as tokens, and the tokens that end an answer."""
    tokenizer = AutoTokenizer.from_pretrained(find_root() / "data" / "tokenizer")
    lines = (find_root() / "data" / "word_problems" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:n]
    rows = [json.loads(line) for line in lines]
    prompts = tokenizer([prompt_text(tokenizer, row["problem"], "") for row in rows], add_special_tokens=False).input_ids
    solutions = tokenizer([row["solution"] + END_OF_TURN for row in rows], add_special_tokens=False).input_ids
    return list(zip(prompts, solutions, strict=True)), {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TURN)}


def learned(requests: Sequence[Request], loops: Sequence[int], steps: int) -> OuroForCausalLM:
    """A model that has learned the continuations by heart, at loop counts drawn from `loops`."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        model = OuroForCausalLM(AutoConfig.from_pretrained(presets.write_architecture(folder, "cpu")))
    ids = pad_sequence([torch.tensor(a + b) for a, b in requests], batch_first=True)
    labels = pad_sequence([torch.tensor([-100] * len(a) + b) for a, b in requests], batch_first=True, padding_value=-100)
    optimizer, rng = torch.optim.AdamW(model.parameters(), 4e-3), random.Random(0)
    with threadpool_limits(1):
        for _ in range(steps):
            logits = model(ids[:, :-1], n_loops=rng.choice(loops)).logits
            F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def generated(model: OuroForCausalLM, prompts: Sequence[list[int]], depth: int, room: int, stops: set[int]) -> list[list[int]]:
    """The answers that transformers' `generate` gives at one depth, up to and with the token that ends them."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    greedy = {"do_sample": False, "max_new_tokens": room, "eos_token_id": sorted(stops), "pad_token_id": 0}
    answers = model.generate(ids, attention_mask=mask, n_loops=depth, **greedy)[:, longest:].tolist()
    return [a[: next((k + 1 for k, token in enumerate(a) if token in stops), len(a))] for a in answers]


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = call()
    return found, time.perf_counter() - start


def _check_alike(model: OuroForCausalLM, prompt: list[int], depth: int, ours: list[int], theirs: list[int]) -> None:
    """RuntimeError if they part where the logits of the two tokens differ by more than rounding."""
    if ours == theirs:
        return
    at = next(k for k, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + ours[:at]]), n_loops=depth).logits[0, -1]
    if (gap := float((logits[ours[at]] - logits[theirs[at]]).abs())) > _PARTING:
        raise RuntimeError(f"sweep and generate disagree at depth {depth}, by {gap:.1e} of a logit, at token {at} of an answer")

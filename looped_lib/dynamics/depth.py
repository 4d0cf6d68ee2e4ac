"""Exact match against loop count: every depth from one pass over the loops, without generating anything.

Claim. Let a problem have prompt p and answer characters y_1 .. y_m with y_m = EOS, and let f(s) be the argmax of the
logits after text s at some depth. Greedy decoding of p is graded correct (`problems.exact_match`) if and only if every
teacher-forced argmax is right: f(p y_1 .. y_{i-1}) = y_i for i = 1 .. m.

Proof. Greedy decoding emits g_i = f(p g_1 .. g_{i-1}). It is correct iff g_i = y_i for all i <= m: nothing after EOS
counts.
(=>) If g_i = y_i for all i, then f(p y_1 .. y_{i-1}) = f(p g_1 .. g_{i-1}) = g_i = y_i.
(<=) Let every teacher-forced argmax be right. By induction on i, g_1 .. g_{i-1} = y_1 .. y_{i-1} (nothing at all for i
= 1), so g_i = f(p g_1 .. g_{i-1}) = f(p y_1 .. y_{i-1}) = y_i. []

In a causal model one forward over the text p y_1 .. y_{m-1} gives all m argmaxes at once, and one more loop of the same
states gives the next depth: D depths cost D loops, where generation costs m (1 + 2 + ... + D) of them.

Early stop. A step is a deterministic function of the state: once a state equals an earlier one bit for bit, the
trajectory repeats itself from there for ever, and all later depths are copied. Nothing less than bitwise equality stops
the pass.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from looped_lib.dynamics.prefixes import SharedPrefixes, WholeSequences
from looped_lib.models.looped import evaluating
from looped_lib.models.protocols import Cached, Looped
from looped_lib.models.state import moving
from looped_lib.tasks.problems import Problems, equal_lengths

_ANCHOR_EVERY = 8  # loops between the states that later ones are compared with: any cycle up to this long is found


@dataclass(frozen=True)
class DepthCurve:
    """What a model does at every loop count 0, 1, ..., max_depth. Depth 0 reads out the embedding itself.

    Means over tokens are over the positions the model reads (all characters but the last, no padding), in float64.
    """

    correct: Bool[Tensor, "problem depth"]
    """Whether greedy decoding at this depth gives the whole answer and EOS, in the order of the problems."""
    lenient: Bool[Tensor, "problem depth"]
    """Whether it gives the answer as a number, EOS or not: only a digit from 1 to 9 in the place of EOS makes another of it."""
    state_norm: Float[Tensor, "depth"]
    """Mean over tokens of ||h_t||."""
    residual: Float[Tensor, "depth"]
    """Mean over tokens of ||h_t - h_{t-1}|| / ||h_{t-1}||; NaN at depth 0."""

    @property
    def depths(self) -> Int[Tensor, "depth"]:
        """The loop counts."""
        return torch.arange(self.correct.shape[1])

    @property
    def accuracy(self) -> Float[Tensor, "depth"]:
        """Share of the problems solved, 0 to 1."""
        return self.correct.double().mean(dim=0)


def depth_curve(
    model: Looped, problems: Problems, max_depth: int, problems_at_once: int | None = None, progress: bool = False
) -> DepthCurve:
    """Exact match, state norm and residual of `model` at depths 0..max_depth.

    Of a `Cached` model each distinct prefix is computed once. Dropout is off,
    whatever the module's mode. `problems_at_once` bounds the memory; the default keeps a CPU's working set in its cache
    and a GPU busy. Results are on the CPU. ValueError without problems or with a negative depth.
    """
    if len(problems) == 0 or max_depth < 0:
        raise ValueError(f"depth_curve needs problems and a depth of at least 0, got {len(problems)} and {max_depth}")
    if problems_at_once is None:
        problems_at_once = 128 if problems.ids.device.type == "cpu" else 8192
    correct = torch.zeros(2, len(problems), max_depth + 1, dtype=torch.bool)
    sums = torch.zeros(2, max_depth + 1, dtype=torch.float64)
    chunks = equal_lengths(problems, problems_at_once)
    another = torch.tensor([c in "123456789" for c in problems.alphabet], device=problems.ids.device)
    with (
        torch.inference_mode(),
        evaluating(model),
        tqdm(total=len(chunks) * (max_depth + 1), desc="accuracy by depth", disable=not progress, unit="loop") as bar,
    ):
        for rows, ids, prompt_len in chunks:
            correct[:, rows], chunk_sums = _one_chunk(model, ids, prompt_len, another, max_depth, bar)
            sums += chunk_sums
    state_norm, residual = sums / sum(ids[:, 1:].numel() for _, ids, _ in chunks)
    residual[0] = math.nan
    return DepthCurve(*correct, state_norm, residual)


def _one_chunk(
    model: Looped, ids: Int[Tensor, "problem char"], prompt_len: int, another: Bool[Tensor, "..."], max_depth: int, bar: tqdm
) -> tuple[Bool[Tensor, "2 problem depth"], Float[Tensor, "2 depth"]]:
    """Correctness, strict and lenient, and the sums over tokens of state norm and relative residual, at every depth."""
    answer = ids[:, prompt_len:]
    width = answer.shape[1]
    if isinstance(model, Cached):
        sequences = SharedPrefixes(model, ids[:, :-1], width)
    else:
        sequences = WholeSequences(model, ids[:, :-1])
    correct = torch.empty(2, len(ids), max_depth + 1, dtype=torch.bool, device=ids.device)
    sums = torch.zeros(2, max_depth + 1, dtype=torch.float64, device=ids.device)
    anchor, anchor_depth, before = [], 0, None
    for depth in range(max_depth + 1):
        if depth:
            before = sequences.states
            sequences.step()
        correct[:, :, depth] = _graded(sequences.logits(width).argmax(dim=-1), answer, another)
        sums[:, depth] = _token_sums(model, sequences.states, before, sequences.copies)
        bar.update()
        if anchor and all(map(torch.equal, sequences.states, anchor)):
            # h_t = h_{t-p}: everything from t + 1 on is what it was p loops earlier.
            period = depth - anchor_depth
            later = torch.arange(depth + 1, max_depth + 1)
            source = later - period * ((later - depth + period - 1) // period)
            correct[..., later], sums[:, later] = correct[..., source], sums[:, source]
            bar.update(len(later))
            break
        if depth % _ANCHOR_EVERY == 0:
            anchor, anchor_depth = sequences.states, depth
    return correct.cpu(), sums.cpu()


def _graded(
    said: Int[Tensor, "problem char"], answer: Int[Tensor, "problem char"], another: Bool[Tensor, "..."]
) -> Bool[Tensor, "2 problem"]:
    """Right with EOS, and right as a number: digits come least significant first, so that a last digit 0 adds nothing to it, and
    only the characters marked by `another` make another number."""
    right = said == answer
    adds = another[said[:, -1].clamp_max(len(another) - 1)] & (said[:, -1] < len(another))  # a model may have more tokens
    return torch.stack([right.all(dim=1), right[:, :-1].all(dim=1) & ~adds])


def _token_sums(model: nn.Module, states: list[Tensor], before: list[Tensor] | None, copies: list[Tensor]) -> Float[Tensor, "2"]:
    """Sums over tokens of ||h_t|| and ||h_t - h_{t-1}|| / ||h_{t-1}||; a shared prefix counts once per sequence."""
    sums = torch.zeros(2, dtype=torch.float64, device=copies[0].device)
    for i, (state, n) in enumerate(zip(states, copies, strict=True)):
        h = moving(model, state)
        sums[0] += h.norm(dim=-1).double().sum(dim=1) @ n
        if before is not None:
            h_before = moving(model, before[i])
            relative = (h - h_before).norm(dim=-1) / h_before.norm(dim=-1)
            sums[1] += relative.double().sum(dim=1) @ n
    return sums

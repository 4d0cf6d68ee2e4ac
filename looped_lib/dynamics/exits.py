"""Loops that stop by themselves: at a fixed point more loops change nothing.

For each new character the text so far is looped until it rests, and only then read out. With

    r_t^q = ||h_t^q - h_{t-1}^q|| / ||h_{t-1}^q||        how much loop t moved position q

the character after position p is read from h_tau,

    tau_p = min { t : max_{q <= p} r_t^q <= tolerance },  max_loops if there is none:

each sequence of a batch stops on its own, once *every* position of its text is at rest. tau_p depends on the characters up to p
only, so the proof in `depth` holds here too: greedy decoding is right exactly when every teacher-forced argmax, each read at its
own tau_p, is right. One pass over the loops therefore gives accuracy and loops for every tolerance, without generating.

With `anderson` > 0 the loops are accelerated (see `anderson`) from where max_{q <= p} r_t^q <= NEAR on; r is then
||Phi(x) - x|| / ||x||, and Phi(x) is read out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from looped_lib.dynamics.anderson import Iterate, advance
from looped_lib.models.cache import Cache, Slot
from looped_lib.models.lengths import token_norm
from looped_lib.models.looped import evaluating
from looped_lib.models.protocols import Cached, Looped
from looped_lib.models.state import moving
from looped_lib.tasks.problems import Problems, equal_lengths

NEAR = 0.03  # mixing from 0.1 on was slower than the plain loop, from 0.01 on no faster than from here


@dataclass(frozen=True)
class ExitCurve:
    """What stopping at each tolerance costs and gives."""

    tolerances: Float[Tensor, "tolerance"]
    """As given."""
    loops: Float[Tensor, "problem tolerance"]
    """Loops used, a mean over the characters of each answer."""
    correct: Bool[Tensor, "problem tolerance"]
    """Whether greedy decoding with this exit gives the whole answer and EOS."""

    @property
    def mean_loops(self) -> Float[Tensor, "tolerance"]:
        """Mean loops a generated character."""
        return self.loops.mean(0)

    @property
    def accuracy(self) -> Float[Tensor, "tolerance"]:
        """Share of the problems solved, 0 to 1."""
        return self.correct.double().mean(0)


@dataclass(frozen=True)
class Continuation:
    """Text generated with exit, and what it cost."""

    ids: Int[Tensor, "batch seq_out"]
    """The prompt and the new tokens."""
    loops: Int[Tensor, "batch new"]
    """tau of each new token."""


def exit_curve(
    model: Looped,
    problems: Problems,
    tolerances: Sequence[float],
    max_loops: int = 100,
    anderson: int = 0,
    problems_at_once: int = 256,
    progress: bool = False,
) -> ExitCurve:
    """Accuracy and loops used at every tolerance, from one pass over the loops. Rows at rest leave the batch.

    ValueError on a tolerance below 0 or none at all, without problems, or with max_loops below 1.
    """
    if not tolerances or min(tolerances) < 0:
        raise ValueError(f"exit_curve needs one or more tolerances of at least 0, got {list(tolerances)}")
    if len(problems) == 0 or max_loops < 1:
        raise ValueError(f"exit_curve needs problems and at least 1 loop, got {len(problems)} and {max_loops}")
    bounds = torch.tensor(list(tolerances))
    loops = torch.empty(len(problems), len(bounds))
    correct = torch.empty(len(problems), len(bounds), dtype=torch.bool)
    chunks = equal_lengths(problems, problems_at_once)
    with torch.inference_mode(), evaluating(model):
        for rows, ids, prompt_len in tqdm(chunks, desc="early exits", disable=not progress, unit="chunk"):
            tau, right = _one_chunk(model, ids, prompt_len, bounds.to(ids.device), max_loops, anderson)
            loops[rows], correct[rows] = tau.float().mean(1).cpu(), right.all(1).cpu()
    return ExitCurve(bounds, loops, correct)


def generate(
    model: Cached,
    ids: Int[Tensor, "batch seq"],
    new_tokens: int,
    tolerance: float,
    max_loops: int = 100,
    anderson: int = 0,
) -> Continuation:
    """Greedy continuation of each row, all of one length, every token read out once its text is at rest.

    Keys and values are cached for every loop made so far. A token that needs more loops than any before it takes the earlier
    positions along, from where they stopped: token for token this is what looping the whole text anew would give.
    ValueError with new_tokens or max_loops below 1, and for a model with a coda, which would need those positions' coda at
    every tau.
    """
    if new_tokens < 1 or max_loops < 1:
        raise ValueError(f"generate needs at least 1 new token and 1 loop, got {new_tokens} and {max_loops}")
    if model.attention_layers[2]:
        raise ValueError("generation with exit caches the loops only: this model's coda would need every position again")
    decoder = _Decoder(model, ids.shape[1] + new_tokens, tolerance, max_loops, anderson)
    out, loops = [ids], []
    with torch.no_grad(), evaluating(model):
        for _ in range(new_tokens):
            token, tau = decoder.next_token(out[-1])
            out.append(token)
            loops.append(tau)
    return Continuation(torch.cat(out, dim=1), torch.stack(loops, dim=1))


def _one_chunk(
    model: nn.Module, ids: Int[Tensor, "problem char"], prompt_len: int, bounds: Tensor, max_loops: int, anderson: int
) -> tuple[Int[Tensor, "problem width tolerance"], Bool[Tensor, "problem width tolerance"]]:
    """tau, and whether the argmax there is right, for every character of the answers."""
    answer = ids[:, prompt_len:]
    tau = torch.full((*answer.shape, len(bounds)), max_loops, device=ids.device)
    right = torch.zeros_like(tau, dtype=torch.bool)
    running = torch.arange(len(ids), device=ids.device)
    now = Iterate(model.embed(ids[:, :-1]))
    for t in range(1, max_loops + 1):
        image = model.step(now.x)
        worst = _residual(model, image, now.x).cummax(1).values
        said = model.readout(image)[:, -answer.shape[1] :].argmax(-1)
        rests = worst[:, -answer.shape[1] :, None] <= bounds
        leaves = (tau[running] == max_loops) & (rests | (t == max_loops))
        tau[running] = torch.where(leaves, t, tau[running])
        right[running] = torch.where(leaves, (said == answer[running])[..., None], right[running])
        stay = (tau[running] == max_loops).any(2).any(1)
        if not stay.any():
            break
        now, running = advance(now, image, anderson, worst <= NEAR).map(lambda x, stay=stay: x[stay]), running[stay]
    return tau, right


class _Decoder:
    """One generation: the cache of every loop made so far, and where the positions so far have got to."""

    def __init__(self, model: Cached, seq_max: int, tolerance: float, max_loops: int, anderson: int):
        self.model, self.seq_max = model, seq_max
        self.tolerance, self.max_loops, self.anderson = tolerance, max_loops, anderson
        self.cache = Cache.empty(0, model.attention_layers[1], model.attention_layers[0], 0, seq_max)
        self.worst: list[Tensor] = []  # for each cached loop, the greatest residual among the positions so far, per row
        self.deepest: Iterate | None = None  # these positions after all cached loops

    def next_token(self, new: Int[Tensor, "batch new"]) -> tuple[Int[Tensor, "batch 1"], Int[Tensor, "batch"]]:
        """The token after the positions `new`, and its tau."""
        now = Iterate(self.model.embed(new, self.cache))
        token, tau = new[:, -1:], torch.zeros_like(new[:, 0])
        running = torch.ones_like(tau, dtype=torch.bool)
        t = 0
        while t < len(self.worst) or running.any():
            if t == len(self.worst):  # deeper than ever
                self.cache.loops.append([Slot(self.seq_max) for _ in range(self.model.attention_layers[1])])
                self.worst.append(now.x.new_zeros(len(new)))
                now, self.deepest = self._with_earlier(now), None
            image = self.model.step(now.x, self.cache.loops[t])
            worst = torch.maximum(self.worst[t][:, None], _residual(self.model, image, now.x).cummax(1).values)
            self.worst[t] = worst[:, -1]
            t += 1
            leaves = running & ((worst[:, -1] <= self.tolerance) | (t == self.max_loops))
            token = torch.where(leaves[:, None], self.model.readout(image[:, -1:]).argmax(-1), token)
            tau, running = torch.where(leaves, t, tau), running & ~leaves
            now = advance(now, image, self.anderson, worst <= NEAR)
        self.deepest = self._with_earlier(now)
        return token, tau

    def _with_earlier(self, now: Iterate) -> Iterate:
        return now if self.deepest is None else self.deepest.followed_by(now)


def _residual(model: nn.Module, image: Tensor, x: Tensor) -> Float[Tensor, "batch seq"]:
    """||Phi(x) - x|| / ||x|| of every position."""
    return token_norm(moving(model, image - x)) / token_norm(moving(model, x))

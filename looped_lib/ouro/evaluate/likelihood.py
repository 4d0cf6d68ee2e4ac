"""Log-probabilities of given texts at many loop counts and exits, from one pass over the loops.

The state after t loops is the same whatever number of loops follows, so T loops give depths 1 .. T, where separate passes take
1 + 2 + .. + T, and every exit within T. Only the states that say a token of a continuation are read out, where a stop asks for
it. Texts that differ in their last token only, as the choices of a question do, are looped once.

Memory: the states of `at_once` texts, and LOGITS logits at a time.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from looped_lib.models.looped import evaluating
from looped_lib.ouro.evaluate.stops import Leaving, Stop, in_order, loops_of
from looped_lib.ouro.model.exits import LOGITS
from looped_lib.ouro.model.modeling import OuroForCausalLM

Request = tuple[list[int], list[int]]  # a context and what continues it, as tokens


@dataclass(frozen=True)
class Likelihoods:
    """How likely continuations are at each stop."""

    stops: list[Stop]
    """Loop counts, ascending, and exits."""
    log_p: Float[Tensor, "stop request"]
    """log-probability of each whole continuation, in nats."""
    greedy: Bool[Tensor, "stop request"]
    """Whether greedy decoding writes it: each of its tokens is the likeliest."""
    loops: Int[Tensor, "stop request"]
    """tau, summed over the tokens of each continuation."""


@dataclass(frozen=True)
class Chunk:
    """Some texts of a batch, and which of their states say what."""

    ids: Int[Tensor, "row seq"]
    """Padded on the right, where no token sees it."""
    rows: Int[Tensor, "token"]
    """The row of each token of a continuation ..."""
    places: Int[Tensor, "token"]
    """... and the place before it, whose state says it."""
    tokens: Int[Tensor, "token"]
    """The tokens of the continuations."""
    requests: Int[Tensor, "token"]
    """The request that each is of."""


def log_likelihoods(
    model: OuroForCausalLM, requests: Sequence[Request], stops: Collection[Stop], at_once: int = 64
) -> Likelihoods:
    """How likely each request's continuation is after its context, at every stop.

    ValueError without stops, with a loop count below 1, or with a context or continuation that is empty.
    """
    stops = in_order(stops)
    if not stops or min(map(loops_of, stops)) < 1 or not all(context and continuation for context, continuation in requests):
        given = ", ".join(map(str, stops)) or "none"
        raise ValueError(f"log_likelihoods needs stops of at least 1 loop ({given}), and contexts and continuations of tokens")
    log_p = torch.zeros(len(stops), len(requests), device=model.device)
    loops, wrong = (torch.zeros_like(log_p, dtype=torch.long) for _ in range(2))
    with torch.inference_mode(), evaluating(model):
        for chunk in chunks(requests, at_once, model.device):
            h, leaving = model.embed(chunk.ids), Leaving(model, stops)
            context = model.model.context(h)
            for t in range(max(map(loops_of, stops))):
                before, h = h, model.step(h, context)
                leaves = leaving.look(t, *(x[chunk.rows, chunk.places] for x in (before, h)))
                if not leaves.any():
                    continue
                said, likeliest = _read(model, h[chunk.rows, chunk.places], chunk.tokens)
                log_p.index_add_(1, chunk.requests, said.where(leaves, 0))
                wrong.index_add_(1, chunk.requests, (leaves & ~likeliest).long())
                loops.index_add_(1, chunk.requests, leaves * (t + 1))
    return Likelihoods(stops, log_p.cpu(), (wrong == 0).cpu(), loops.cpu())


def chunks(requests: Sequence[Request], at_once: int, device: torch.device) -> Iterator[Chunk]:
    """The requests, `at_once` different texts at a time, those of similar lengths together. The last token is not looped."""
    texts: dict[tuple[int, ...], list[int]] = {}
    for i, (context, continuation) in enumerate(requests):
        texts.setdefault((*context, *continuation[:-1]), []).append(i)
    order = sorted(texts, key=len)
    for start in range(0, len(order), at_once):
        some, wanted = order[start : start + at_once], []
        for row, text in enumerate(some):
            for i in texts[text]:
                first = len(requests[i][0]) - 1
                wanted += [(row, first + k, token, i) for k, token in enumerate(requests[i][1])]
        ids = torch.tensor([text + (0,) * (len(some[-1]) - len(text)) for text in some], device=device)
        yield Chunk(ids, *torch.tensor(wanted, device=device).unbind(1))


def _read(
    model: OuroForCausalLM, h: Float[Tensor, "token d_model"], tokens: Int[Tensor, "token"]
) -> tuple[Float[Tensor, "token"], Bool[Tensor, "token"]]:
    """The log-probability that each state gives its token, and whether that is the likeliest."""
    log_p, likeliest = [], []
    at_once = max(1, LOGITS // model.config.vocab_size)
    for states, said in zip(h.split(at_once), tokens.split(at_once), strict=True):
        logits = model.readout(states[None])[0].float()
        log_p.append(logits.gather(1, said[:, None]).squeeze(1) - logits.logsumexp(1))
        likeliest.append(logits.argmax(1) == said)
    return torch.cat(log_p), torch.cat(likeliest)

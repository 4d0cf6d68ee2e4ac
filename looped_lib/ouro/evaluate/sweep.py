"""lm-eval's engine on transformers, which answers at many loop counts from one pass over the loops.

Log-likelihoods, rolling ones too, are those of `likelihood`; greedy answers those of `drafts`. What is drawn at a temperature, or
searched otherwise than greedily, is what transformers' `generate` writes, at one depth after another.

Memory: the states and the cache of `batch_size` texts at the greatest depth, as that depth needs by itself.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from looped_lib.ouro.evaluate.drafts import greedy_texts
from looped_lib.ouro.evaluate.likelihood import log_likelihoods

_GREEDY = {"do_sample", "temperature", "max_gen_toks", "until", "eos_token_id"}  # what a greedy answer depends on


class Sweep(HFLM):
    """Answers at the loop count `depth`, which may be set between calls, from what `prepare` found for all of them."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, max_length: int):
        super().__init__(model, backend="causal", tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)
        self.depth: int = model.config.total_ut_steps
        self.depths: list[int] = []
        self.known: dict[tuple[str, ...], dict[int, Any]] = {}  # by request, what is answered at each depth

    def prepare(self, requests: Iterable[Instance], depths: Iterable[int]) -> None:
        """Find the answers to the requests at all depths, and forget those to others. Sampled ones have to wait for `depth`."""
        self.depths, self.known = sorted(set(depths)), {}
        different = {_key(request): request for request in requests}
        ask = {"loglikelihood": self._likely, "loglikelihood_rolling": self._rolling, "generate_until": self._greedy}
        for kind in {request.request_type for request in different.values()}:
            some = {key: request for key, request in different.items() if request.request_type == kind}
            self.known |= zip(some, ask[kind](list(some.values())), strict=True)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether it is greedy) of each continuation, at `depth`."""
        return [self._known(request) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log-probability of each text, at `depth`."""
        return [self._known(request) for request in requests]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """An answer to each question, at `depth`."""
        found = [self._known(request) for request in requests]
        return super().generate_until(requests, disable_tqdm) if None in found else found

    def _known(self, request: Instance) -> Any:
        """What was prepared. None if it could not be."""
        return self.known[_key(request)].get(self.depth)

    def _likely(self, requests: list[Instance]) -> list[dict[int, tuple[float, bool]]]:
        found = super().loglikelihood(requests, disable_tqdm=True)
        return [dict(zip(self.depths, zip(p.tolist(), greedy.tolist(), strict=True), strict=True)) for p, greedy in found]

    def _rolling(self, requests: list[Instance]) -> list[dict[int, float]]:
        return [dict(zip(self.depths, p.tolist(), strict=True)) for p in super().loglikelihood_rolling(requests)]

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[Any, Any]]:
        """As lm-eval asks it of an engine, but (log-probability, whether it is greedy) are vectors over the depths."""
        found = log_likelihoods(self.model, [(a, b) for _, a, b in requests], self.depths, self.batch_size)
        return list(zip(found.log_p.T.double(), found.greedy.T, strict=True))

    def _greedy(self, requests: list[Instance]) -> list[dict[int, str]]:
        answers: list[dict[int, str]] = [{} for _ in requests]
        for how in {repr(request.args[1]): request.args[1] for request in requests}.values():
            asked = normalize_gen_kwargs(how, self.max_gen_toks)
            if asked.get("do_sample") or not asked.keys() <= _GREEDY:
                continue
            mine = [i for i, request in enumerate(requests) if request.args[1] == how]
            stops = handle_stop_sequences(asked["until"], self.tok_decode(self.eot_token_id, skip_special_tokens=False))
            stops = [stop for stop in stops if stop]
            seen = max(len(stop.encode()) for stop in stops) + 2  # tokens that a stop at the end of a text is within, at most
            for i, texts in zip(
                mine,
                greedy_texts(
                    self.model,
                    [self.tok_batch_encode([requests[i].args[0]])[0][0].tolist() for i in mine],
                    self.depths,
                    asked["max_gen_toks"],
                    asked.get("eos_token_id", [self.eot_token_id]),
                    self.batch_size,
                    ended=lambda text, stops=stops, seen=seen: self._stopped(text[-seen:], stops),
                ),
                strict=True,
            ):
                answers[i] = {d: postprocess_generated_text(self.tok_decode(text), stops, None) for d, text in texts.items()}
        return answers

    def _stopped(self, tokens: list[int], stops: list[str]) -> bool:
        end = self.tok_decode(tokens, skip_special_tokens=False)
        return any(stop in end for stop in stops)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **how: Any) -> Any:
        return super()._model_generate(context, max_length, stop, n_loops=self.depth, **how)


def _key(request: Instance) -> tuple[str, ...]:
    """What a request asks."""
    return (request.request_type, *(x if isinstance(x, str) else repr(x) for x in request.args))

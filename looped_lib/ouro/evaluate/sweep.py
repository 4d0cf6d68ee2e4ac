"""lm-eval's engine on transformers, which answers at many loop counts and exits from one pass over the loops.

Log-likelihoods, rolling ones too, are those of `likelihood`; greedy answers those of `drafts`. What is drawn at a temperature, or
searched otherwise than greedily, is what transformers' `generate` writes, at one loop count after another.

Memory: the states and the cache of `batch_size` texts at the greatest loop count, as that needs by itself.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from looped_lib.ouro.evaluate.drafts import Tokens, greedy_texts
from looped_lib.ouro.evaluate.likelihood import Likelihoods, Request, log_likelihoods
from looped_lib.ouro.evaluate.stops import Stop, in_order
from looped_lib.ouro.model.exits import Exit

_GREEDY = {"do_sample", "temperature", "max_gen_toks", "until", "eos_token_id"}  # what a greedy answer depends on


class Sweep(HFLM):
    """Answers at `stop`, which may be set between calls, from what `prepare` found for all stops."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, max_length: int):
        super().__init__(model, backend="causal", tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)
        self.stop: Stop = model.config.total_ut_steps
        self.stops: list[Stop] = []
        self.known: dict[tuple[str, ...], dict[Stop, Any]] = {}  # by request, what is answered at each stop
        self.loops, self.tokens = Counter(), Counter()  # by exit, of the tokens that were read out

    def prepare(self, requests: Iterable[Instance], stops: Iterable[Stop]) -> None:
        """Find the answers to the requests at all stops, and forget those to others. What is not greedy waits for its stop."""
        self.stops, self.known = in_order(set(stops)), {}
        self.loops.clear()
        self.tokens.clear()
        different = {_key(request): request for request in requests}
        ask = {"loglikelihood": self._likely, "loglikelihood_rolling": self._rolling, "generate_until": self._greedy}
        for kind in {request.request_type for request in different.values()}:
            some = {key: request for key, request in different.items() if request.request_type == kind}
            self.known |= zip(some, ask[kind](list(some.values())), strict=True)

    def mean_loops(self, stop: Exit) -> float:
        """Loops a token, of all tokens that were read out with an exit: those of the continuations, or of the answers."""
        return self.loops[stop] / self.tokens[stop]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether it is greedy) of each continuation, at `stop`."""
        return [self._known(request) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log-probability of each text, at `stop`."""
        return [self._known(request) for request in requests]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """An answer to each question, at `stop`. ValueError with an exit, if the task does not ask for the greedy answer."""
        found = [self._known(request) for request in requests]
        if None not in found:
            return found
        if isinstance(self.stop, Exit):
            raise ValueError(f"its answers are not greedy ones ({requests[0].args[1]}), and exits are measured of those only")
        return super().generate_until(requests, disable_tqdm)

    def _known(self, request: Instance) -> Any:
        """What was prepared. None if it could not be."""
        return self.known[_key(request)].get(self.stop)

    def _likely(self, requests: list[Instance]) -> list[dict[Stop, tuple[float, bool]]]:
        found = super().loglikelihood(requests, disable_tqdm=True)
        return [dict(zip(self.stops, zip(p.tolist(), greedy.tolist(), strict=True), strict=True)) for p, greedy in found]

    def _rolling(self, requests: list[Instance]) -> list[dict[Stop, float]]:
        return [dict(zip(self.stops, p.tolist(), strict=True)) for p in super().loglikelihood_rolling(requests)]

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, Tokens, Tokens]], **_: Any) -> list[tuple[Any, Any]]:
        """As lm-eval asks it of an engine, but (log-probability, whether it is greedy) are vectors over the stops."""
        asked = [(context, continuation) for _, context, continuation in requests]
        found = log_likelihoods(self.model, asked, self.stops, self.batch_size)
        for stop in self.stops:
            self._count(stop, found, asked, range(len(asked)))
        return list(zip(found.log_p.T.double(), found.greedy.T, strict=True))

    def _greedy(self, requests: list[Instance]) -> list[dict[Stop, str]]:
        answers: list[dict[Stop, str]] = [{} for _ in requests]
        for how in {repr(request.args[1]): request.args[1] for request in requests}.values():
            asked = normalize_gen_kwargs(how, self.max_gen_toks)
            if asked.get("do_sample") or not asked.keys() <= _GREEDY:
                continue
            mine = [i for i, request in enumerate(requests) if request.args[1] == how]
            stops = handle_stop_sequences(asked["until"], self.tok_decode(self.eot_token_id, skip_special_tokens=False))
            prompts = [self.tok_batch_encode([requests[i].args[0]])[0][0].tolist() for i in mine]
            ends = asked.get("eos_token_id", [self.eot_token_id])
            texts = self._written(prompts, asked["max_gen_toks"], ends, [text for text in stops if text])
            for i, written in zip(mine, texts, strict=True):
                answers[i] = {s: postprocess_generated_text(self.tok_decode(text), stops, None) for s, text in written.items()}
        return answers

    def _written(self, prompts: list[Tokens], room: int, ends: list[int], until: list[str]) -> list[dict[Stop, Tokens]]:
        """Greedy answers, whose loops are counted."""
        seen = max(map(len, map(str.encode, until))) + 2  # tokens that a text of `until` at the end is within, at most

        def ended(answer: Tokens) -> bool:
            end = self.tok_decode(answer[-seen:], skip_special_tokens=False)
            return any(text in end for text in until)

        texts = greedy_texts(self.model, prompts, self.stops, room, ends, self.batch_size, ended=ended)
        if exits := [stop for stop in self.stops if isinstance(stop, Exit)]:
            pairs = dict.fromkeys((i, tuple(text[stop])) for i, text in enumerate(texts) for stop in exits)
            place = {pair: k for k, pair in enumerate(pairs)}
            asked = [(prompts[i], list(text)) for i, text in place]
            found = log_likelihoods(self.model, asked, exits, self.batch_size)
            for stop in exits:
                self._count(stop, found, asked, [place[i, tuple(text[stop])] for i, text in enumerate(texts)])
        return texts

    def _count(self, stop: Stop, found: Likelihoods, asked: list[Request], which: Iterable[int]) -> None:
        """The loops that an exit took for some of what was asked."""
        if isinstance(stop, Exit):
            which = list(which)
            self.loops[stop] += int(found.loops[found.stops.index(stop), which].sum())
            self.tokens[stop] += sum(len(asked[i][1]) for i in which)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **how: Any) -> Any:
        return super()._model_generate(context, max_length, stop, n_loops=self.stop, **how)


def _key(request: Instance) -> tuple[str, ...]:
    """What a request asks."""
    return (request.request_type, *(x if isinstance(x, str) else repr(x) for x in request.args))

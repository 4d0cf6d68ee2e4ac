"""Greedy answers at many loop counts for little more than one: what depths write alike is computed once.

A text is the greedy one of depth T if and only if every argmax at depth T, each after the text before it, is its next token (the
proof is in `dynamics.depth`). So a text is first drafted: at one depth, or given. One pass over the loops then reads the draft at
all depths. What a depth agrees with is its own text; at the first place where its argmax is another token it goes on with that
one. Depths that go on alike stay together in one row, looped as often as the deepest of them asks, and part where their
argmaxes do (`branches`): no token is looped twice after the same text. D depths that agree cost as many loops as the deepest
and the draft; D depths that part at once share the prompt.

Every token is the argmax of its depth after the text before it, as in transformers' `generate`. The two sum in another order, as
two batch sizes of `generate` do. So in float32 they write the same tokens, unless the two likeliest are closer than rounding,
some 1e-5 of a logit; in bfloat16 that is common. Depth T is T loops for every token: the gate ends none early. Exits are depths
among the others (`stops`): what they save in loops is counted by `likelihood`, not saved here, where all loops run.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch

from looped_lib.models.looped import evaluating
from looped_lib.ouro.evaluate.branches import Branch, BranchCache, read
from looped_lib.ouro.evaluate.stops import Stop, in_order, loops_of
from looped_lib.ouro.model.modeling import OuroForCausalLM

Tokens = list[int]


def greedy_texts(
    model: OuroForCausalLM,
    prompts: Sequence[Tokens],
    stops: Collection[Stop],
    room: int,
    ends: Collection[int],
    at_once: int = 64,
    drafts: Sequence[Tokens] | None = None,
    ended: Callable[[Tokens], bool] = lambda answer: False,
) -> list[dict[Stop, Tokens]]:
    """The greedy answer to each prompt at each stop: up to `room` tokens, or up to and with the first token in `ends`.

    Keys and values take no more memory than `at_once` texts at the most loops; what does not fit waits, and starts anew from
    its text. `drafts`, if given, are what the answers may be; else they are written at the depth nearest to the config's
    total_ut_steps, for which the model was made. An answer for which `ended` holds is not gone on with, but may have tokens too
    many. ValueError without stops, with one of less than 1 loop, with an empty prompt, or room or at_once below 1.
    """
    loops = list(map(loops_of, stops))
    if not stops or min(loops) < 1 or room < 1 or at_once < 1 or not all(prompts):
        raise ValueError(
            f"greedy_texts needs loops, room and at_once of at least 1 and prompts that are not empty, got loops "
            f"{sorted(loops)}, room {room}, at_once {at_once} and prompts of {sorted(set(map(len, prompts)))} tokens"
        )
    rest, budget = in_order(stops), at_once * max(loops)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding
    answers: list[dict[Stop, Tokens]] = [{} for _ in prompts]
    decoding = _Decoding(model, prompts, room, frozenset(ends), ended, budget, answers)
    with torch.inference_mode(), evaluating(model):
        if drafts is None:
            first = min(rest, key=lambda stop: abs(loops_of(stop) - model.config.total_ut_steps))
            rest.remove(first)
            decoding.run(Branch(i, (first,), list(prompts[i])) for i in order)
            drafts = [answer[first] for answer in answers]
        if rest:
            decoding.run(Branch(i, tuple(rest), list(prompts[i]), list(drafts[i][:room])) for i in order)
    return [{stop: answer[stop] for stop in in_order(stops)} for answer in answers]


class _Decoding:
    """Branches at work and branches that wait for memory."""

    def __init__(
        self,
        model: OuroForCausalLM,
        prompts: Sequence[Tokens],
        room: int,
        ends: frozenset[int],
        ended: Callable[[Tokens], bool],
        budget: int,
        answers: list[dict[Stop, Tokens]],
    ):
        self.model, self.prompts, self.room, self.ends, self.ended = model, prompts, room, ends, ended
        self.budget = budget  # loops of all texts at work, so that their cache is bounded
        self.answers = answers
        self.parting = 1.0  # how far texts part, from 0, all depths write alike, to 1, no two do; as last seen

    def run(self, branches: Iterable[Branch]) -> None:
        """Write the answers of the branches, and of all that they part into."""
        waiting = deque(branches)
        while waiting:
            active = self._fitting(waiting)
            least, most = sum(b.loops for b in active), sum(b.loops_apart for b in active)
            greatest, cache = least, BranchCache()
            while active:
                grown = self._grow(active, cache)
                greatest = max(greatest, sum(branch.loops for _, branch in grown))
                active = self._keep(grown, cache, waiting)
            if most > least:
                self.parting = (greatest - least) / (most - least)

    def _fitting(self, waiting: deque[Branch]) -> list[Branch]:
        """The next branches that are likely to fit with all that they part into, at least one; deepest first."""
        active, loops = [], 0.0
        while waiting:
            branch = waiting[0]
            loops += branch.loops + self.parting * (branch.loops_apart - branch.loops)
            if active and loops > self.budget:
                break
            active.append(waiting.popleft())
        return sorted(active, key=lambda b: -b.loops)

    def _grow(self, active: list[Branch], cache: BranchCache) -> list[tuple[int, Branch]]:
        """Loop the branches once; what is not finished then, with the row whose cache it goes on from, deepest first."""
        said = read(self.model, active, cache)
        grown = [(row, new) for row, branch in enumerate(active) for new in self._part(branch, said[row])]
        return sorted(grown, key=lambda pair: -pair[1].loops)

    def _keep(self, grown: list[tuple[int, Branch]], cache: BranchCache, waiting: deque[Branch]) -> list[Branch]:
        """The branches that go on now. What memory does not hold waits, without a cache."""
        kept, loops = [], 0
        for row, branch in grown:
            if kept and loops + branch.loops > self.budget:
                branch.cached = 0
                waiting.append(branch)
            else:
                kept.append((row, branch))
                loops += branch.loops
        cache.select([row for row, _ in kept], [branch.loops for _, branch in kept])
        return [branch for _, branch in kept]

    def _part(self, branch: Branch, said: dict[Stop, Tokens]) -> Iterator[Branch]:
        """Note the answers that are finished; the branches that the others of a branch's stops go on in."""
        prompt, groups = self.prompts[branch.problem], {}
        before = branch.text[len(prompt) :]
        for stop, tokens in said.items():
            agreed = next((k for k, token in enumerate(branch.draft) if token != tokens[k]), len(branch.draft))
            new = tokens[: agreed + 1]  # what it agrees with, and the token it says after that
            end = next((k + 1 for k, token in enumerate(new) if token in self.ends), len(new))
            answer = (before + new[:end])[: self.room]
            if answer[-1] in self.ends or len(answer) == self.room or self.ended(answer):
                self.answers[branch.problem][stop] = answer
            else:
                groups.setdefault(tuple(answer), []).append(stop)
        for answer, stops in groups.items():
            text = [*prompt, *answer]
            yield Branch(branch.problem, tuple(stops), text, cached=len(text) - 1)

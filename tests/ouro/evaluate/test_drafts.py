"""Greedy answers of all depths at once against decoding each depth by itself, token for token."""

import pytest
import torch
from tiny_ouro import random_ids, tiny

from looped_lib.ouro.evaluate.branches import BranchCache
from looped_lib.ouro.evaluate.drafts import greedy_texts
from looped_lib.ouro.model.exits import Exit

DEPTHS, ROOM, ENDS = (1, 2, 3, 6), 7, {5, 7}
PROMPTS = [row[: 2 + 3 * k % 7].tolist() for k, row in enumerate(random_ids(5, 9))]


def separately(model, prompt, depth, room=ROOM, ends=frozenset(ENDS)) -> list[int]:
    """One depth, one prompt, one token at a time, without a cache."""
    answer = []
    with torch.no_grad():
        while len(answer) < room and not (answer and answer[-1] in ends):
            answer.append(int(model(torch.tensor([prompt + answer]), n_loops=depth).logits[0, -1].argmax()))
    return answer


def margin(model, prompt, depth, answer) -> float:
    """By how much, in logits, the likeliest token leads the next at the closest place of an answer."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer[:-1]]), n_loops=depth).logits[0, len(prompt) - 1 :]
    two = logits.topk(2).values
    return float((two[:, 0] - two[:, 1]).min())


@pytest.fixture(scope="module", params=["agree", "part"])
def case(request):
    """A model and what each depth answers: one whose depths often agree, as loops change little, and one whose depths do not."""
    model, agree = tiny(num_hidden_layers=2), request.param == "agree"
    with torch.no_grad():
        if agree:
            model.model.norm.weight.fill_(1)
        for layer in model.model.layers if agree else ():
            layer.input_layernorm_2.weight.mul_(0.1)
            layer.post_attention_layernorm_2.weight.mul_(0.1)
    texts = [{depth: separately(model, prompt, depth) for depth in DEPTHS} for prompt in PROMPTS]
    distinct = [len({tuple(text) for text in answers.values()}) for answers in texts]
    assert {1, 3} <= set(distinct) if agree else set(distinct) == {4}
    closest = min(margin(model, p, d, t) for p, answers in zip(PROMPTS, texts, strict=True) for d, t in answers.items())
    assert closest > 1e-4  # far more than rounding: no text is one of several
    return model, texts


def test_every_depth_writes_what_it_writes_by_itself(case):
    model, texts = case
    assert greedy_texts(model, PROMPTS, DEPTHS, ROOM, ENDS) == texts
    lengths = {len(text) for answers in texts for text in answers.values()}
    assert ROOM in lengths and min(lengths) < ROOM  # some end by themselves


EXITS = (Exit("gate", 0.7, 6), Exit("residual", 0.4, 4), Exit("kl", 0.04, 6), Exit("entropy", 3.64, 5))


def test_exits_write_what_generate_does_with_them(case):
    """Beside depths, in one pass, whatever memory there is."""
    model, texts = case
    found = greedy_texts(model, PROMPTS, [*EXITS, *DEPTHS], ROOM, ENDS)
    assert found == greedy_texts(model, PROMPTS, [*EXITS, *DEPTHS], ROOM, ENDS, at_once=2)
    assert [{depth: answers[depth] for depth in DEPTHS} for answers in found] == texts
    for prompt, answers in zip(PROMPTS, found, strict=True):
        for stop in EXITS:
            how = {"exit_threshold" if stop.by == "gate" else f"exit_{stop.by}": stop.threshold, "n_loops": stop.loops}
            greedy = {"do_sample": False, "max_new_tokens": ROOM, "eos_token_id": sorted(ENDS), "pad_token_id": 0}
            (text,) = model.generate(torch.tensor([prompt]), **greedy, **how).tolist()
            assert answers[stop] == text[len(prompt) :]


@pytest.mark.parametrize("at_once", [1, 2])
def test_little_memory_changes_nothing_and_is_enough(case, at_once, monkeypatch):
    model, texts = case
    held, select = [], BranchCache.select

    def watched(cache, rows, loops):
        held.append(sum(loops))
        select(cache, rows, loops)

    monkeypatch.setattr(BranchCache, "select", watched)
    assert greedy_texts(model, PROMPTS, DEPTHS, ROOM, ENDS, at_once) == texts
    assert max(held) <= at_once * max(DEPTHS)


def test_any_draft_gives_the_same_texts(case):
    model, texts = case
    right = [answers[2] for answers in texts]
    for drafts in (right, [text[:2] + [1] * 30 for text in right], [[]] * 5, [text + [1, 2] for text in right]):
        assert greedy_texts(model, PROMPTS, DEPTHS, ROOM, ENDS, drafts=drafts) == texts


def test_it_is_what_generate_writes_for_a_padded_batch(case):
    model, texts = case
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    for depth in DEPTHS:
        out = model.generate(
            ids,
            attention_mask=(ids != 0).long(),
            n_loops=depth,
            do_sample=False,
            max_new_tokens=ROOM,
            eos_token_id=sorted(ENDS),
            pad_token_id=0,
        )
        for line, answers in zip(out[:, longest:].tolist(), texts, strict=True):
            assert line[: len(answers[depth])] == answers[depth]


def test_depths_that_agree_are_looped_once(case, monkeypatch):
    """Loops of tokens: those of the draft and of the deepest if all agree; never more than apart and a draft read in vain."""
    model, texts = case
    looped, loop, first, deepest = [0], type(model.model).loop, 3, max(DEPTHS)

    def counted(self, h, *args):
        looped[0] += h.shape[0] * h.shape[1]
        return loop(self, h, *args)

    monkeypatch.setattr(type(model.model), "loop", counted)
    for prompt, answers in zip(PROMPTS, texts, strict=True):
        looped[0] = 0
        greedy_texts(model, [prompt], DEPTHS, ROOM, ENDS, at_once=8)
        apart = sum(depth * (len(prompt) + len(text) - 1) for depth, text in answers.items())
        drafted = len(prompt) + len(answers[first])
        agree = len({tuple(text) for text in answers.values()}) == 1
        assert looped[0] <= ((first + deepest) * drafted if agree else apart + deepest * drafted)


def test_an_answer_that_has_ended_is_not_gone_on_with(case):
    model, texts = case
    found = greedy_texts(model, PROMPTS, DEPTHS, ROOM, ENDS, drafts=[[]] * 5, ended=lambda answer: len(answer) >= 3)
    assert found == [{depth: text[:3] for depth, text in answers.items()} for answers in texts]


def test_one_depth_is_drafted_only(case):
    model, texts = case
    assert greedy_texts(model, PROMPTS, [3], ROOM, ENDS) == [{3: answers[3]} for answers in texts]
    assert greedy_texts(model, [], [4], ROOM, ENDS) == []


@pytest.mark.parametrize("depths, room, prompts", [([], 3, [[1]]), ([0, 1], 3, [[1]]), ([1], 0, [[1]]), ([1], 3, [[1], []])])
def test_what_cannot_be_written_is_an_error(depths, room, prompts):
    with pytest.raises(ValueError, match="greedy_texts needs loops, room and at_once of at least 1"):
        greedy_texts(tiny(), prompts, depths, room, ENDS)

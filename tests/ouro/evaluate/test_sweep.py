"""What a sweep answers at each depth against lm-eval's own engine, which loops once per depth."""

import pytest
import torch
from learned_ouro import PROMPTS, ROWS, TOKENIZER, write_learned
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import set_seed

from looped_lib.ouro.evaluate.sweep import Sweep
from looped_lib.ouro.model.exits import Exit
from looped_lib.ouro.model.modeling import OuroForCausalLM

DEPTHS, MAX_LEN = (4, 1, 2), 200
ENDS = [TOKENIZER.eos_token_id, TOKENIZER.vocab["<|im_end|>"]]
GREEDY = {"do_sample": False, "temperature": 0.0, "max_gen_toks": 24, "eos_token_id": ENDS, "until": []}
PAGES = [" ".join(row["solution"] for row in ROWS), "Ann has 3 pens."]  # the first needs several windows


def asked(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, each, k, ("task", k, 1)) for k, each in enumerate(arguments)]


CASES = {
    "choices": asked("loglikelihood", [(p, f" {n}") for p in PROMPTS[:3] for n in (1, 2, 31)] + [("", PAGES[1])]),
    "pages": asked("loglikelihood_rolling", [(page,) for page in PAGES]),
    "answers": asked("generate_until", [(p, GREEDY) for p in PROMPTS[:6]]),
    "until": asked("generate_until", [(p, {**GREEDY, "until": ["<<", "."]}) for p in PROMPTS[:6]]),
    "beams": asked("generate_until", [(p, {**GREEDY, "num_beams": 2}) for p in PROMPTS[:2]]),
    "drawn": asked("generate_until", [(p, {**GREEDY, "do_sample": True, "temperature": 0.7}) for p in PROMPTS[:4]]),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """A sweep, and lm-eval's engine at a depth."""
    folder = tmp_path_factory.mktemp("learned")
    model = write_learned(folder)
    torch.nn.init.normal_(model.model.early_exit_gate.weight)  # different tokens exit after different loops
    model.save_pretrained(folder)

    def separate(depth: int, **config) -> HFLM:
        model = OuroForCausalLM.from_pretrained(folder, total_ut_steps=depth, **config).eval()
        return HFLM(model, backend="causal", tokenizer=TOKENIZER, batch_size=3, max_length=MAX_LEN)

    return Sweep(OuroForCausalLM.from_pretrained(folder).eval(), TOKENIZER, 3, MAX_LEN), separate


@pytest.mark.parametrize("case", CASES)
def test_every_depth_answers_what_its_own_engine_does(case, engines):
    sweep, separate = engines
    requests, found = CASES[case], []
    sweep.prepare(requests, DEPTHS)
    for depth in DEPTHS:
        set_seed(0)
        theirs = getattr(separate(depth), requests[0].request_type)(requests)
        set_seed(0)
        sweep.stop = depth
        ours = getattr(sweep, requests[0].request_type)(requests)
        if case == "choices":
            assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
            ours, theirs = ([log_p for log_p, _ in answers] for answers in (ours, theirs))
        assert ours == (theirs if requests[0].request_type == "generate_until" else pytest.approx(theirs, rel=1e-5, abs=1e-4))
        found.append(ours)
    assert found[0] != found[1] != found[2] != found[0]  # or the test would say little


@pytest.mark.parametrize("case", ["choices", "pages", "answers"])
def test_an_exit_answers_what_a_model_does_that_exits_by_itself(case, engines):
    sweep, separate = engines
    requests, stop = CASES[case], Exit("gate", 0.6, 4)
    sweep.prepare(requests, [2, stop, Exit("gate", 0.9, 4), Exit("residual", 1e-9, 4)])
    sweep.stop = stop
    theirs = separate(4, early_exit_threshold=0.6)
    ours, said = (getattr(each, requests[0].request_type)(requests) for each in (sweep, theirs))
    if case == "choices":
        ours, said = ([log_p for log_p, _ in answers] for answers in (ours, said))
    assert ours == (said if case == "answers" else pytest.approx(said, rel=1e-5, abs=1e-4))
    assert 1 < sweep.mean_loops(stop) < sweep.mean_loops(Exit("gate", 0.9, 4)) < sweep.mean_loops(Exit("residual", 1e-9, 4)) == 4
    if case == "answers":
        prompt = TOKENIZER(requests[0].args[0], return_tensors="pt").input_ids
        sweep.prepare(requests[:1], [stop])
        text = theirs.model.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=ENDS)
        taus = theirs.model(text[:, :-1]).exit_loops[0, prompt.shape[1] - 1 :]
        assert sweep.mean_loops(stop) == taus.double().mean() and len(taus.unique()) > 1


def test_an_exit_of_what_is_not_greedy_is_refused(engines):
    sweep, _ = engines
    sweep.stop = Exit("gate", 0.6, 4)
    sweep.prepare(CASES["beams"], [sweep.stop])
    with pytest.raises(ValueError, match="its answers are not greedy ones .*num_beams.*, and exits are measured of those only"):
        sweep.generate_until(CASES["beams"])


@pytest.mark.parametrize("case", ["choices", "pages", "answers"])
def test_all_depths_are_one_pass(case, engines, monkeypatch):
    """Of as many loops as the deepest by itself, for texts that are given; afterwards no depth loops anything."""
    sweep, _ = engines
    loops, layers = [], type(sweep.model.model).before_norm
    monkeypatch.setattr(type(sweep.model.model), "before_norm", lambda self, h, *a: loops.append(len(h)) or layers(self, h, *a))
    sweep.prepare(CASES[case], [max(DEPTHS)])
    alone = loops.copy()
    loops.clear()
    sweep.prepare(CASES[case], DEPTHS)
    assert loops == alone or case == "answers"
    loops.clear()
    for depth in DEPTHS:
        sweep.stop = depth
        getattr(sweep, CASES[case][0].request_type)(CASES[case])
    assert loops == []


def test_an_answer_ends_at_a_stop_that_the_task_names(engines, monkeypatch):
    sweep, _ = engines
    read, embed = [], type(sweep.model).embed
    monkeypatch.setattr(type(sweep.model), "embed", lambda self, ids: read.append(ids.shape) or embed(self, ids))
    anything = ["", *map(chr, range(32, 127))]  # an empty stop is none
    sweep.prepare(asked("generate_until", [(PROMPTS[0], {**GREEDY, "max_gen_toks": 100, "until": anything})]), DEPTHS)
    assert len(read) == 2  # the draft, and what the other depths say in its place

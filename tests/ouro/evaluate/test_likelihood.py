"""Log-likelihoods of all depths from one pass over the loops against a pass for each depth and request."""

import pytest
import torch
from tiny_ouro import random_ids, tiny

from looped_lib.ouro.evaluate import likelihood
from looped_lib.ouro.evaluate.likelihood import log_likelihoods
from looped_lib.ouro.model import exits
from looped_lib.ouro.model.exits import Exit

DEPTHS = (1, 2, 4, 7)
TEXTS = random_ids(5, 12).tolist()
REQUESTS = [(text[: 3 + k], text[3 + k : 5 + 2 * k]) for k, text in enumerate(TEXTS)]
REQUESTS += [(TEXTS[0][:6], [token]) for token in range(3, 48)]  # choices: one text for all of them


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def separately(model):
    log_p, greedy = [], []
    with torch.no_grad():
        for depth in DEPTHS:
            for context, continuation in REQUESTS:
                logits = model(torch.tensor([context + continuation[:-1]]), n_loops=depth).logits[0, len(context) - 1 :]
                said = torch.tensor(continuation)
                log_p.append(logits.log_softmax(-1).gather(1, said[:, None]).sum())
                greedy.append((logits.argmax(-1) == said).all())
    return torch.stack(log_p).view(len(DEPTHS), -1), torch.stack(greedy).view(len(DEPTHS), -1)


EXITS = [Exit("gate", 0.7, 6), Exit("gate", 0.9, 6), Exit("residual", 0.4, 7), Exit("kl", 0.04, 5), Exit("entropy", 3.64, 6)]


@pytest.mark.parametrize("logits", [2**24, 100])
def test_an_exit_reads_out_what_the_model_does_with_it(model, logits, monkeypatch):
    """Any number of exits, beside depths, from one pass."""
    monkeypatch.setattr(exits, "LOGITS", logits)
    found = log_likelihoods(model, REQUESTS, [*EXITS, *DEPTHS], at_once=3)
    plain = log_likelihoods(model, REQUESTS, DEPTHS, at_once=3)
    assert set(found.stops) == {*EXITS, *DEPTHS} and torch.equal(found.log_p[: len(DEPTHS)], plain.log_p)
    assert found.loops[: len(DEPTHS)].tolist() == [[depth * len(said) for _, said in REQUESTS] for depth in DEPTHS]
    for stop in EXITS:
        log_p, greedy, loops = (values[found.stops.index(stop)] for values in (found.log_p, found.greedy, found.loops))
        how = {"exit_threshold" if stop.by == "gate" else f"exit_{stop.by}": stop.threshold}
        for k, (context, said) in enumerate(REQUESTS[:7]):
            with torch.no_grad():
                out = model(torch.tensor([context + said[:-1]]), n_loops=stop.loops, **how)
            logits, tau = out.logits[0, len(context) - 1 :], out.exit_loops[0, len(context) - 1 :]
            of_said = logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])
            torch.testing.assert_close(log_p[k], of_said.sum(), rtol=1e-5, atol=1e-5)
            assert loops[k] == tau.sum() and greedy[k] == (logits.argmax(-1) == torch.tensor(said)).all()
        assert len(loops[5:].unique()) > 1 or loops[:5].float().std() > 0


@pytest.mark.parametrize("at_once, logits", [(64, 2**24), (2, 100), (1, 1)])
def test_every_depth_says_what_it_says_by_itself(model, separately, at_once, logits, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS", logits)
    found = log_likelihoods(model, REQUESTS, DEPTHS[::-1], at_once)
    torch.testing.assert_close(found.log_p, separately[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(found.greedy, separately[1]) and found.stops == list(DEPTHS)
    assert found.greedy[:, 5:].sum(1).tolist() == [1] * len(DEPTHS)  # one choice is the likeliest
    assert found.log_p[:, 5:].std(0).min() > 0.01  # depths differ


def test_a_text_is_looped_once_and_read_out_at_the_depths_asked_for(model, monkeypatch):
    looped, read = [], []
    step, readout = type(model).step, type(model).readout
    monkeypatch.setattr(type(model), "step", lambda self, h, loops: looped.append(len(h)) or step(self, h, loops))
    monkeypatch.setattr(type(model), "readout", lambda self, h: read.append(h.shape[1]) or readout(self, h))
    log_likelihoods(model, REQUESTS, DEPTHS)
    assert looped == [6] * 7 and read == [sum(len(c) for _, c in REQUESTS)] * len(DEPTHS)


@pytest.mark.parametrize("requests, depths", [(REQUESTS, []), (REQUESTS, [0, 1]), ([([], [3])], [1]), ([([3], [])], [1])])
def test_what_has_no_likelihood_is_an_error(model, requests, depths):
    with pytest.raises(ValueError, match="log_likelihoods needs stops of at least 1 loop .*, and contexts and continuations"):
        log_likelihoods(model, requests, depths)


def test_no_requests_have_no_likelihoods(model):
    assert log_likelihoods(model, [], [1, 2]).log_p.shape == (2, 0)

"""Log-likelihoods of all depths from one pass over the loops against a pass for each depth and request."""

import pytest
import torch
from tiny_ouro import random_ids, tiny

from looped_lib.ouro.evaluate import likelihood
from looped_lib.ouro.evaluate.likelihood import log_likelihoods

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


@pytest.mark.parametrize("at_once, logits", [(64, 2**24), (2, 100), (1, 1)])
def test_every_depth_says_what_it_says_by_itself(model, separately, at_once, logits, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS", logits)
    found = log_likelihoods(model, REQUESTS, DEPTHS[::-1], at_once)
    torch.testing.assert_close(found.log_p, separately[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(found.greedy, separately[1]) and found.depths == list(DEPTHS)
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
    with pytest.raises(ValueError, match="log_likelihoods needs depths of at least 1, and contexts and continuations"):
        log_likelihoods(model, requests, depths)


def test_no_requests_have_no_likelihoods(model):
    assert log_likelihoods(model, [], [1, 2]).log_p.shape == (2, 0)

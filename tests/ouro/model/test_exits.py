"""Which loop each position is read out at: by gate, residual and readouts, as the equations say, whatever shares the batch."""

import pytest
import torch
from other_ouro import at_loop, exit_loops, logits, states
from tiny_ouro import random_ids, sizes_of, tiny

from looped_lib.ouro.model.cache import LastLoopCache, LoopCache

EXITS = [
    {"exit_threshold": 0.7},
    {"exit_residual": 0.4},
    {"exit_kl": 0.04},
    {"exit_entropy": 3.64},
    {"exit_threshold": 0.8, "exit_residual": 0.35},
]


def counting(model) -> list[int]:
    """A list that grows by one entry with each loop the model runs."""
    calls, step = [], model.model.step
    model.model.step = lambda h, loops=None: (calls.append(1), step(h, loops))[1]
    return calls


@pytest.mark.parametrize("n_loops", [1, 3, 6])
@pytest.mark.parametrize("how", EXITS, ids=str)
@torch.no_grad()
def test_exit_loop_and_logits_are_the_equations(how, n_loops):
    model, ids = tiny(), random_ids(4, 9)
    w = model.state_dict()
    path = states(w, ids, n_loops, sizes_of(model))
    tau = exit_loops(w, path, **{name.removeprefix("exit_"): x for name, x in how.items()})
    out = model(ids, n_loops=n_loops, **how)
    assert torch.equal(out.exit_loops, tau) and (n_loops == 1 or len(tau.unique()) > 1)
    torch.testing.assert_close(out.logits, logits(w, at_loop(path, tau)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_configs_threshold_is_the_default_and_one_never_exits():
    model, ids = tiny(), random_ids(2, 6)
    assert model(ids).exit_loops is None
    assert torch.equal(model(ids, exit_threshold=1.0).logits, model(ids).logits)
    model.config.early_exit_threshold = 0.7
    assert torch.equal(model(ids).exit_loops, tiny()(ids, exit_threshold=0.7).exit_loops)
    assert model(ids, exit_threshold=1.0).exit_loops is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_saturated_gate_does_not_exit_early_in_bfloat16(dtype):
    """lambda = 0.9985 is below the threshold of 0.999 until loop 2; rounded to bfloat16 it would be 1."""
    model = tiny(dtype)
    model.model.early_exit_gate.weight.zero_()
    model.model.early_exit_gate.bias.fill_(6.5)
    assert torch.tensor(0.9985).bfloat16() == 1
    assert (model(random_ids(2, 5), n_loops=4, exit_threshold=0.999).exit_loops == 2).all()


@pytest.mark.parametrize("how", EXITS, ids=str)
@torch.no_grad()
def test_a_row_exits_as_it_does_alone(how):
    """Batch mates, left padding included, change neither when nor what is read out."""
    model, ids = tiny(), random_ids(3, 9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    together = model(ids, attention_mask=mask, n_loops=6, **how)
    for row in range(3):
        real = mask[row].bool()
        alone = model(ids[row : row + 1, real], n_loops=6, **how)
        assert torch.equal(together.exit_loops[row, real], alone.exit_loops[0])
        torch.testing.assert_close(together.logits[row, real], alone.logits[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_loops_end_with_the_last_exit():
    model, ids = tiny(), random_ids(2, 6)
    calls = counting(model)
    tau = model(ids, n_loops=9, exit_residual=0.4).exit_loops
    assert len(calls) == tau.max() < 9
    for cache, runs in ((LastLoopCache(), tau.max()), (LoopCache(3), 9)):
        calls.clear()
        out = model(ids, n_loops=9, exit_residual=0.4, past_key_values=cache)
        assert len(calls) == runs and torch.equal(out.exit_loops, tau)
    calls.clear()
    model(ids, n_loops=9)
    assert len(calls) == 9


@torch.no_grad()
def test_generation_runs_as_many_loops_as_its_tokens_need():
    model, ids = tiny(), random_ids(1, 6)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "n_loops": 9, "exit_residual": 0.4}
    calls, cache = counting(model), LastLoopCache()
    text = model.generate(ids, past_key_values=cache, **options)
    runs, cache = len(calls), LastLoopCache()
    tau = [model(ids, n_loops=9, exit_residual=0.4, past_key_values=cache).exit_loops.max()]
    for token in text[:, 6:-1].split(1, dim=1):
        tau.append(model(token, n_loops=9, exit_residual=0.4, past_key_values=cache).exit_loops.max())
    assert runs == sum(tau) < 5 * 9
    calls.clear()
    model.generate(ids, **options)
    assert len(calls) == 5 * 9


def test_an_exit_is_refused_where_a_loss_is_asked_for():
    model, ids = tiny(), random_ids(1, 6)
    for how in EXITS:
        with pytest.raises(ValueError, match="give labels or an exit"):
            model(ids, labels=ids, **how)
    model.config.early_exit_threshold = 0.5  # of a checkpoint that exits when used: no matter in training
    assert torch.equal(model(ids, labels=ids).loss, tiny()(ids, labels=ids).loss)

"""Generation: cached equals computing anew; the shared last loop against its own definition; batches, beams, continuation."""

import pytest
import torch
from other_ouro import last_loop_decoding, logits, states
from tiny_ouro import random_ids, sizes_of, tiny
from transformers import DynamicCache

from looped_lib.ouro.model.cache import LastLoopCache, LoopCache

GREEDY = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
CACHES = {"all loops": lambda: LoopCache(3), "last loop": LastLoopCache}
EXITS = [{}, {"threshold": 0.7}, {"residual": 0.4}]
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


def generate(model, ids, new=6, **how):
    out = model.generate(ids, max_new_tokens=new, **GREEDY, **how)
    return out.sequences, torch.stack(out.logits, 1), out.past_key_values


def anew(model, ids, n_loops):
    """Next-token logits after every position, from the equations."""
    return logits(model.state_dict(), states(model.state_dict(), ids, n_loops, sizes_of(model))[-1])


@pytest.mark.parametrize("n_loops", [1, 2, 4])
@pytest.mark.parametrize("use_cache", [True, False])
def test_every_new_token_is_what_the_whole_text_gives(n_loops, use_cache):
    model, ids = tiny(), random_ids(3, 6)
    text, said, _ = generate(model, ids, n_loops=n_loops, use_cache=use_cache)
    expected = anew(model, text[:, :-1], n_loops)[:, 5:]
    torch.testing.assert_close(said, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(text[:, :6], ids) and torch.equal(text[:, 6:], expected.argmax(-1))


def test_the_configs_loops_are_the_default():
    model, ids = tiny(total_ut_steps=2), random_ids(2, 6)
    assert torch.equal(generate(model, ids)[1], generate(model, ids, n_loops=2)[1])
    model.config.total_ut_steps = 5
    assert torch.equal(generate(model, ids)[1], generate(model, ids, n_loops=5)[1])


@pytest.mark.parametrize("n_loops", [1, 3])
def test_beams_have_the_probability_of_their_text(n_loops):
    model, ids = tiny(), random_ids(2, 6)
    how = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "eos_token_id": None, "length_penalty": 0.0}
    out = model.generate(ids, n_loops=n_loops, return_dict_in_generate=True, output_scores=True, **how)
    assert torch.equal(out.sequences, model.generate(ids, n_loops=n_loops, use_cache=False, **how))
    log_p = anew(model, out.sequences[:, :-1], n_loops)[:, 5:].log_softmax(-1)
    sums = log_p.gather(-1, out.sequences[:, 6:, None]).sum((1, 2))
    torch.testing.assert_close(out.sequences_scores, sums, rtol=1e-4, atol=1e-4)
    shared = model.generate(ids, n_loops=1, past_key_values=LastLoopCache(), **how)
    assert torch.equal(shared, model.generate(ids, n_loops=1, **how))  # with one loop, the last is all


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("how", [{}, {"exit_residual": 0.4}], ids=str)
def test_a_left_padded_row_is_continued_as_it_is_alone(cache, how):
    model, ids = tiny(), random_ids(3, 6)
    text, said, _ = generate(model, ids, attention_mask=LEFT, n_loops=4, past_key_values=CACHES[cache](), **how)
    for row in range(3):
        alone = ids[row : row + 1, LEFT[row].bool()]
        own_text, own, _ = generate(model, alone, n_loops=4, past_key_values=CACHES[cache](), **how)
        assert torch.equal(text[row, 6:], own_text[0, alone.shape[1] :])
        torch.testing.assert_close(said[row], own[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", EXITS, ids=str)
@pytest.mark.parametrize("n_loops", [1, 5])
def test_the_shared_last_loop_is_its_definition(how, n_loops):
    """Logits of generated text, row by row; with exit, keys and values are those of the loop a token was read out at."""
    model, ids = tiny(), random_ids(3, 6)
    text, said, _ = generate(
        model, ids, n_loops=n_loops, past_key_values=LastLoopCache(), **{f"exit_{name}": x for name, x in how.items()}
    )
    loops, ends = [], list(range(6, 12))
    for row in range(3):
        expected, tau = last_loop_decoding(model.state_dict(), text[row : row + 1, :-1], ends, n_loops, sizes_of(model), **how)
        torch.testing.assert_close(said[row], expected[0, 5:], rtol=1e-5, atol=1e-5)
        loops.append(tau)
    assert (len(torch.cat(loops).unique()) > 2) == (bool(how) and n_loops > 1)


@pytest.mark.parametrize("how", EXITS, ids=str)
def test_a_shared_last_loop_is_read_in_pieces_as_it_is_defined(how):
    """Inside a piece, tokens that have exited are looped on for those that have not, as in a prompt."""
    model, ids, ends, cache, parts = tiny(), random_ids(3, 9), [3, 7, 9], LastLoopCache(), []
    for start, end in zip([0, *ends], ends, strict=False):
        exits = {f"exit_{name}": x for name, x in how.items()}
        parts.append(model(ids[:, start:end], n_loops=6, past_key_values=cache, **exits).logits)
    expected = [last_loop_decoding(model.state_dict(), row[None], ends, 6, sizes_of(model), **how)[0] for row in ids]
    torch.testing.assert_close(torch.cat(parts, 1), torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_sharing_the_last_loop_divides_memory_and_keeps_the_first_token():
    model, ids = tiny(), random_ids(2, 6)
    (_, full, every), (_, approximate, last) = (
        generate(model, ids, n_loops=4, past_key_values=make()) for make in CACHES.values()
    )
    assert torch.equal(full[:, 0], approximate[:, 0])
    assert (full[:, 1:] - approximate[:, 1:]).abs().max() > 1e-3
    one_loop = 2 * 3 * (2 * 11) * (2 * 8) * 4  # keys and values, layers, tokens, kv heads times their width, bytes
    assert last.nbytes() == one_loop and every.nbytes() == 4 * one_loop
    assert len(last.layers) == 3 and len(every.layers) == 12
    assert generate(model.bfloat16(), ids, n_loops=4)[2].nbytes() == 2 * one_loop


def test_slot_t_n_plus_i_holds_the_keys_of_loop_t_and_layer_i():
    model, ids = tiny(), random_ids(1, 6)
    cache = model(ids, n_loops=4, use_cache=True).past_key_values
    for t in range(4):
        shorter = model(ids, n_loops=t + 1, use_cache=True).past_key_values
        for i in range(3):
            assert torch.equal(cache.layers[3 * t + i].keys, shorter.layers[-3 + i].keys)
    assert not torch.equal(cache.layers[0].keys, cache.layers[3].keys)


def test_a_cache_of_one_slot_a_layer_is_refused():
    for call in (tiny(), lambda ids, **how: tiny().generate(ids, max_new_tokens=2, eos_token_id=None, **how)):
        with pytest.raises(ValueError, match="must be a LoopCache or a LastLoopCache .*, got DynamicCache"):
            call(random_ids(1, 3), past_key_values=DynamicCache())


@pytest.mark.parametrize("kind", ["static", "offloaded", "quantized"])
def test_other_caches_of_generate_are_refused(kind):
    with pytest.raises(ValueError, match=f"cache_implementation must be 'dynamic' for Ouro, got '{kind}'.*LastLoopCache"):
        tiny().generate(random_ids(1, 3), max_new_tokens=2, cache_implementation=kind, eos_token_id=None)


@pytest.mark.parametrize("second", [2, 4])
def test_a_text_keeps_its_number_of_loops(second):
    """A call that is refused leaves the cache as it was; an emptied cache may start anew."""
    model, ids = tiny(), random_ids(1, 6)
    cache = model(ids[:, :5], n_loops=3, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=f"holds 3 loops of the text so far, but {second} were asked for"):
        model(ids[:, 5:], n_loops=second, past_key_values=cache)
    for n_loops, text in ((3, ids[:, 5:]), (second, ids)):
        expected = model(ids, n_loops=n_loops, logits_to_keep=1).logits
        got = model(text, n_loops=n_loops, past_key_values=cache, logits_to_keep=1).logits
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        cache.reset()
    shared = model(ids, n_loops=3, past_key_values=LastLoopCache()).past_key_values
    assert model(ids[:, :1], n_loops=second, past_key_values=shared).logits.isfinite().all()


@pytest.mark.parametrize("mask", [None, LEFT], ids=["whole", "left"])
def test_a_text_read_in_pieces_is_the_text(mask):
    model, ids = tiny(), random_ids(3, 6)
    expected = model(ids, attention_mask=mask, n_loops=3).logits
    cache, parts = LoopCache(3), []
    for start, end in ((0, 2), (2, 5), (5, 6)):
        seen = None if mask is None else mask[:, :end]
        parts.append(model(ids[:, start:end], attention_mask=seen, n_loops=3, past_key_values=cache).logits)
    real = torch.ones_like(ids).bool() if mask is None else mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[real], expected[real], rtol=1e-5, atol=1e-5)
    once, by_parts = (generate(model, ids, n_loops=3, attention_mask=mask, prefill_chunk_size=size) for size in (None, 2))
    assert torch.equal(once[0], by_parts[0])


@pytest.mark.parametrize("cache", CACHES)
def test_two_calls_that_share_a_cache_are_one(cache):
    model, ids = tiny(), random_ids(2, 6)
    whole, said, _ = generate(model, ids, new=8, n_loops=3, past_key_values=CACHES[cache]())
    text, first, kept = generate(model, ids, new=3, n_loops=3, past_key_values=CACHES[cache]())
    text, then, _ = generate(model, text, new=5, n_loops=3, past_key_values=kept)
    assert torch.equal(text, whole)
    torch.testing.assert_close(torch.cat([first, then], 1), said, rtol=1e-5, atol=1e-5)


def test_sampling_repeats_and_an_end_token_ends_a_row():
    model, ids = tiny(), random_ids(2, 6)
    how = {"max_new_tokens": 8, "n_loops": 3, "pad_token_id": 0}
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append(model.generate(ids, do_sample=True, eos_token_id=None, num_return_sequences=2, **how))
    assert torch.equal(*runs) and runs[0].shape == (4, 14) and not torch.equal(runs[0][0], runs[0][1])
    free = model.generate(ids, do_sample=False, eos_token_id=None, **how)
    end = free[0, 8].item()  # row 0 says this in its third new token, if not before
    ended = model.generate(ids, do_sample=False, eos_token_id=[end], **how)
    place = (free[0, 6:] == end).nonzero()[0].item() + 7
    assert torch.equal(ended[0, :place], free[0, :place]) and (ended[0, place:] == 0).all()

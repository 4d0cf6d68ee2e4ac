"""Ouro against its equations (other_ouro): logits at every loop count, padding, packing; the pieces compose to the whole."""

import pytest
import torch
import torch.nn.functional as F
from other_ouro import Text, logits, loop, rms_norm, states, text_of
from tiny_ouro import random_ids, sizes_of, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

CONFIGS = {
    "mha": {"num_key_value_heads": 4, "rope_theta": 1e6},
    "gqa": {},
    "one kv head": {"num_key_value_heads": 1},
    "one layer": {"num_hidden_layers": 1},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 12},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
}
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]])


def reference(model, ids, n_loops, text: Text | None = None):
    return states(model.state_dict(), ids, n_loops, sizes_of(model), text)


@pytest.mark.parametrize("n_loops", [1, 2, 4, 7])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_the_equations(name, n_loops):
    ids, model = random_ids(3, 9), tiny(**CONFIGS[name])
    expected = logits(model.state_dict(), reference(model, ids, n_loops)[-1])
    torch.testing.assert_close(model(ids, n_loops=n_loops).logits, expected, rtol=1e-5, atol=1e-5)
    model = model.double()
    expected = reference(model, ids, n_loops)
    out = model(ids, n_loops=n_loops, output_hidden_states=True)
    stack = model.model(ids, n_loops=n_loops, output_hidden_states=True)
    for got, wanted in (
        (out.logits, logits(model.state_dict(), expected[-1])),
        (torch.stack(out.hidden_states), torch.stack(expected)),
        (torch.stack(stack.hidden_states), torch.stack(expected)),
        (stack.last_hidden_state, expected[-1]),
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_the_reference_tells_the_configurations_apart():
    """Else parity would prove little: rotary base and scaling, head width and number of loops all change the logits."""
    ids, base = random_ids(1, 9), tiny()
    expected = logits(base.state_dict(), reference(base, ids, 4)[-1])
    for changes in ({"rope_theta": 1e6}, {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}):
        assert (base(ids, n_loops=4).logits - tiny(**changes)(ids, n_loops=4).logits).abs().max() > 0.01
    assert (base(ids, n_loops=3).logits - expected).abs().max() > 0.1


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kv_heads", [2, 4])
@torch.no_grad()
def test_padding_changes_no_real_position(side, implementation, kv_heads):
    model, ids = tiny(num_key_value_heads=kv_heads), random_ids(3, 8)
    model.set_attn_implementation(implementation)
    mask = LEFT if side == "left" else LEFT.flip(1)
    got = model(ids, attention_mask=mask, n_loops=4).logits
    other_padding = model(ids.where(mask.bool(), 5), attention_mask=mask, n_loops=4).logits
    text = text_of(ids, real=mask)
    whole = logits(model.state_dict(), reference(model, ids, 4, text)[-1])
    for row in range(3):
        real = mask[row].bool()
        alone = logits(model.state_dict(), reference(model, ids[row : row + 1, real], 4)[-1])[0]
        for result in (got, other_padding, whole):
            torch.testing.assert_close(result[row, real], alone, rtol=1e-5, atol=1e-5)
    assert got.isfinite().all()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_packed_texts_are_blind_to_each_other(implementation):
    model, ids = tiny(), random_ids(2, 9)
    model.set_attn_implementation(implementation)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 0, 1, 2, 3, 4, 5, 0]])
    got = model(ids, position_ids=positions, n_loops=3).logits
    for row, bounds in ((0, [0, 4, 9]), (1, [0, 2, 8, 9])):
        for start, end in zip(bounds, bounds[1:], strict=False):
            alone = logits(model.state_dict(), reference(model, ids[row : row + 1, start:end], 3)[-1])[0]
            torch.testing.assert_close(got[row, start:end], alone, rtol=1e-5, atol=1e-5)
    packed = text_of(ids, number=(positions == 0).cumsum(1))
    torch.testing.assert_close(got, logits(model.state_dict(), reference(model, ids, 3, packed)[-1]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_attention_without_masks_gets_the_positions_that_tell_packed_texts():
    """As flash attention does: it is given no mask, and sees the texts of a row in their positions."""

    def by_position(module, q, k, v, mask, scaling, position_ids, **_):
        assert mask is None
        number = (position_ids == 0).cumsum(-1)
        allowed = (number[:, :, None] == number[:, None, :]).tril()[:, None]
        return F.scaled_dot_product_attention(q, k, v, allowed, scale=scaling, enable_gqa=True).transpose(1, 2), None

    AttentionInterface.register("by_position", by_position)
    model, ids, positions = tiny(), random_ids(1, 9), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    expected = model(ids, position_ids=positions, n_loops=3).logits
    model.set_attn_implementation("by_position")
    torch.testing.assert_close(model(ids, position_ids=positions, n_loops=3).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(ids, n_loops=3).logits, tiny()(ids, n_loops=3).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_forward_composes_embed_step_readout():
    model, ids = tiny(), random_ids(2, 7)
    h = model.embed(ids)
    for t in range(1, 5):
        before, h = h, model.step(h)
        assert torch.equal(model(ids, n_loops=t).logits, model.readout(h))
        assert torch.equal(model(inputs_embeds=model.embed(ids), n_loops=t).logits, model.readout(h))
        assert torch.equal(model.loop_norm(model.before_norm(before)), h)
        expected = loop(model.state_dict(), before, text_of(ids), sizes_of(model))
        torch.testing.assert_close(h, expected, rtol=1e-5, atol=1e-5)
    u = torch.randn(2, 7, 32)
    torch.testing.assert_close(model.loop_norm(u), rms_norm(u, model.model.norm.weight, 1e-6))


@torch.no_grad()
def test_no_position_sees_a_later_one():
    model, ids = tiny(), random_ids(2, 8)
    changed = torch.cat([ids[:, :5], (ids[:, 5:] + 1) % 48], 1)
    a, b = model(ids, n_loops=3).logits, model(changed, n_loops=3).logits
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.allclose(a[:, 5:], b[:, 5:])


@torch.no_grad()
def test_the_loop_count_is_that_of_the_call_or_the_config_as_it_is_now():
    model, ids = tiny(total_ut_steps=3), random_ids(1, 6)
    by_count = {t: model(ids, n_loops=t).logits for t in (1, 3, 6)}
    assert torch.equal(model(ids).logits, by_count[3])
    for t in (6, 1):
        model.config.total_ut_steps = t
        assert torch.equal(model(ids).logits, by_count[t])
        assert torch.equal(model.readout(model.model(ids).last_hidden_state), by_count[t])
    for broken in (lambda: model(ids, n_loops=0), lambda: model.model(ids, n_loops=-1)):
        with pytest.raises(ValueError, match="n_loops must be at least 1, got"):
            broken()
    with pytest.raises(ValueError, match="give input_ids or inputs_embeds, one of them"):
        model(n_loops=1)


@torch.no_grad()
def test_logits_of_the_last_positions_alone():
    model, ids = tiny(), random_ids(2, 6)
    whole = model(ids).logits
    for kept, expected in ((1, whole[:, -1:]), (3, whole[:, -3:]), (torch.tensor([0, 4]), whole[:, [0, 4]])):
        torch.testing.assert_close(model(ids, logits_to_keep=kept).logits, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_every_kernel_and_bfloat16_agree():
    ids = random_ids(2, 8)
    expected = tiny()(ids, n_loops=4).logits
    for implementation in ("sdpa", "eager"):
        model = tiny()
        model.set_attn_implementation(implementation)
        with sdpa_kernel(SDPBackend.MATH):
            torch.testing.assert_close(model(ids, n_loops=4).logits, expected, rtol=1e-5, atol=1e-5)
        half = model.bfloat16()(ids, n_loops=4).logits
        assert half.dtype == torch.bfloat16 and (half.float() - expected).norm() < 0.05 * expected.norm()

"""Losses against the equations, values and gradients; loops recomputed in the backward pass; adapters; bfloat16."""

import pytest
import torch
from other_ouro import exit_probabilities, logits, mixture_loss, states, token_losses
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_ouro import gradients, random_ids, sizes_of, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel

from looped_lib.config import PenaltyConfig
from looped_lib.training.jacobian_penalty import JacobianPenalty

IDS = random_ids(3, 9)
LABELS = IDS.masked_fill(torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) < 0.3, -100)
LEFT = torch.ones_like(IDS).index_put((torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])), torch.tensor(0))
COUNTS = [None, 40, torch.tensor(40)]


@pytest.mark.parametrize("n_loops", [1, 4])
@pytest.mark.parametrize("beta", [None, 0.0, 0.1])
@pytest.mark.parametrize("count", COUNTS, ids=str)
def test_losses_and_gradients_are_the_equations(count, beta, n_loops):
    model = tiny(torch.float64)
    w = dict(model.named_parameters())
    path = states(w, IDS, n_loops, sizes_of(model))
    if beta is None:
        expected = token_losses(w, path[-1], LABELS).sum() / ((LABELS[:, 1:] != -100).sum() if count is None else count)
    else:
        expected = mixture_loss(w, path[1:], LABELS, beta, count)
    out = model(IDS, labels=LABELS, n_loops=n_loops, entropy_weight=beta, num_items_in_batch=count)
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=0, check_dtype=False)  # both reduce in float32
    torch.testing.assert_close(out.logits, logits(w, path[-1]), rtol=1e-10, atol=1e-10)
    mine, wanted = gradients(model, out.loss), gradients(model, expected)
    assert ("model.early_exit_gate.weight" in mine) == (beta is not None and n_loops > 1)
    for name in mine:
        torch.testing.assert_close(mine[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_exit_probabilities_sum_to_one_and_are_the_gates():
    model = tiny()
    path = states(model.state_dict(), IDS, 5, sizes_of(model))
    p = exit_probabilities(model.state_dict(), path[1:])
    torch.testing.assert_close(p.sum(0), torch.ones(3, 9))
    assert model.model.exit_gate(path[1]).dtype == tiny(torch.bfloat16).model.exit_gate(path[1].bfloat16()).dtype == torch.float32
    torch.testing.assert_close(model.model.exit_gate(path[1]), p[0])


@pytest.mark.parametrize("bias", [-200.0, 200.0])
def test_a_saturated_gate_has_finite_gradients(bias):
    """Its exit probabilities are exactly 0 and 1, where the entropy's logarithm has none."""
    model = tiny()
    torch.nn.init.constant_(model.model.early_exit_gate.bias, bias)
    loss = model(IDS, labels=LABELS, n_loops=4, entropy_weight=0.1).loss
    assert all(g.isfinite().all() for g in gradients(model, loss).values())
    only = model(IDS, labels=LABELS, n_loops=4 if bias < 0 else 1).loss
    torch.testing.assert_close(loss, only, rtol=1e-5, atol=0)


def saved_bytes(model, **how) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """The loss, and what autograd keeps for its backward pass besides parameters, by storage."""
    kept, parameters = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x):
        if x.untyped_storage().data_ptr() not in parameters:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(IDS, labels=LABELS, **how).loss
    return loss, kept


@pytest.mark.parametrize("beta", [None, 0.1])
def test_recomputed_loops_give_the_same_gradients_and_keep_one_state_a_loop(beta):
    model = tiny().train()
    kept, expected = {}, None
    for recomputed in (False, True):
        if recomputed:
            model.gradient_checkpointing_enable()
        loss, stored = saved_bytes(model, n_loops=6, attention_mask=LEFT, entropy_weight=beta)
        kept[recomputed] = sum(x.untyped_storage().nbytes() for x in stored.values())
        assert beta is None or not any(48 in x.shape for x in stored.values())  # no loop's logits
        grads = gradients(model, loss)
        if recomputed:
            torch.testing.assert_close(loss, expected[0], rtol=0, atol=0)
            torch.testing.assert_close(grads, expected[1], rtol=1e-5, atol=1e-7)
            states_kept = sum(x.shape == (3, 9, 32) for x in stored.values())
            assert states_kept <= 6 + (0 if beta is None else 2)  # h_0 .. h_5; the last is a view of what the head needs
        expected = loss, grads
    assert kept[True] < kept[False] / 8


def test_adapters_train_alone_generate_and_come_back(tmp_path):
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(tiny().train(), LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    model.gradient_checkpointing_enable()
    penalty = JacobianPenalty(PenaltyConfig(weight=0.5), seed=0)
    out = model(input_ids=IDS, labels=LABELS, n_loops=3, of_phi=lambda phi, h: penalty.of(phi, h, 0))
    (out.loss + out.penalty).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name in dict(model.named_parameters()) if ".lora_" in name}
    assert len(trained) == 2 * 7 * 3 and all(p.grad.abs().max() > 0 for p in model.parameters() if p.grad is not None)
    model.eval()
    text = model.generate(input_ids=IDS, n_loops=2, max_new_tokens=4, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        for t in range(9, 13):
            assert torch.equal(model(input_ids=text[:, :t], n_loops=2).logits[:, -1].argmax(-1), text[:, t])
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny(), tmp_path)
        expected = model(input_ids=IDS, n_loops=5).logits
        torch.testing.assert_close(again(input_ids=IDS, n_loops=5).logits, expected, rtol=1e-5, atol=1e-6)
        assert (tiny()(IDS, n_loops=5).logits - expected).abs().max() > 0.1


def test_bfloat16_trains():
    model = tiny(torch.bfloat16).train()
    penalty = JacobianPenalty(PenaltyConfig(weight=0.5), seed=0)
    with sdpa_kernel(SDPBackend.MATH):
        out = model(IDS, labels=LABELS, n_loops=3, entropy_weight=0.1, of_phi=lambda phi, h: penalty.of(phi, h, 0))
    expected = tiny()(IDS, labels=LABELS, n_loops=3, entropy_weight=0.1).loss
    assert out.loss.dtype == torch.float32 and abs(out.loss - expected) < 0.05
    assert all(g.isfinite().all() for g in gradients(model, out.loss + out.penalty).values())


def test_a_cache_is_refused_where_loops_are_computed_twice():
    model = tiny().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ValueError, match="use_cache must be off in training with gradient checkpointing"):
        model(IDS, labels=LABELS, use_cache=True)


def test_an_argument_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="n_loop"):
        tiny()(IDS, n_loop=3)


@pytest.mark.parametrize("how", [{"exit_at_step": 2}, {"use_weighted_exit": True}], ids=str)
def test_arguments_of_the_official_class_are_answered_with_ours(how):
    for call in (tiny(), lambda ids, **how: tiny().generate(ids, max_new_tokens=2, eos_token_id=None, **how)):
        with pytest.raises(TypeError, match="official class's: here n_loops=t .* exit_threshold exits by the gate"):
            call(IDS, **how)

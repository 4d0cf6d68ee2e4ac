"""What a penalty gets from the model: the loop of its batch, padding and all, and h_T; what it moves."""

import pytest
import torch
from other_ouro import loop, states, text_of
from tiny_ouro import gradients, random_ids, sizes_of, tiny

from looped_lib.config import PenaltyConfig
from looped_lib.dynamics.jacobian import dense_jacobian, finite_difference, jvp, vjp
from looped_lib.training.jacobian_penalty import JacobianPenalty

IDS = random_ids(3, 9)
LEFT = torch.ones_like(IDS).index_put((torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])), torch.tensor(0))


@torch.no_grad()
def test_penalties_are_given_the_loop_of_this_batch_and_its_last_state():
    model, seen = tiny(torch.float64), []
    out = model(IDS, attention_mask=LEFT, n_loops=4, of_phi=lambda phi, h: (seen.extend((phi, h)), h.sum())[1])
    phi, h = seen
    text = text_of(IDS, real=LEFT)
    path = states(model.state_dict(), IDS, 5, sizes_of(model), text)
    assert out.penalty == h.sum() and model(IDS).penalty is None
    for got, expected in ((h, path[4]), (phi(h), path[5]), (phi(path[1]), path[2])):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    again = loop(model.state_dict(), h, text, sizes_of(model))
    torch.testing.assert_close(model.step(h, model.model.context(h, LEFT)), again, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mask", [LEFT, LEFT.flip(1), None], ids=["left", "right", "whole"])
@pytest.mark.parametrize("product", ["vjp", "jvp", "finite_difference"])
def test_a_penalty_moves_the_loop_and_nothing_else(product, mask):
    """Its gradient is the slope of its value along a random direction of the weights, h_T held; finite with padding."""
    model, eps = tiny(torch.float64).train(), 1e-6
    tokens, states_seen = None if mask is None else mask.bool(), []
    penalty = JacobianPenalty(PenaltyConfig(weight=0.5, product=product), seed=0)

    def of_phi(phi, h):
        states_seen.append(h.detach())
        return penalty.of(phi, h, 0, tokens=tokens)

    gradient = gradients(model, model(IDS, attention_mask=mask, n_loops=3, of_phi=of_phi).penalty)
    assert {name.split(".")[1] for name in gradient} == {"layers", "norm"}
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradient.values())

    def moved(sign: int) -> torch.Tensor:
        other = tiny(torch.float64)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, p in other.named_parameters():
                if name in gradient:
                    direction[name] = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                    p.add_(sign * eps * direction[name])
        context = other.model.context(states_seen[0], mask)
        return penalty.of(lambda h: other.step(h, context), states_seen[0], 0, tokens=tokens)

    direction: dict[str, torch.Tensor] = {}
    slope = (moved(1) - moved(-1)).detach() / (2 * eps)
    torch.testing.assert_close(slope, sum((gradient[n] * d).sum() for n, d in direction.items()), rtol=1e-4, atol=0)


def test_products_with_the_jacobian_of_a_padded_batch_are_exact():
    model = tiny(torch.float64)
    context = model.model.context(model.embed(IDS), LEFT)
    h = model.step(model.embed(IDS), context).detach()
    v = torch.randn_like(h)
    jacobian = dense_jacobian(lambda x: model.step(x, model.model.context(x, LEFT[:1])), h[0])
    for name, got, expected in (
        ("vjp", vjp, v[0].flatten() @ jacobian),
        ("jvp", jvp, jacobian @ v[0].flatten()),
        ("fd", finite_difference, jacobian @ v[0].flatten()),
    ):
        product = got(lambda x: model.step(x, context), h, v)[0].flatten()
        tol = 1e-6 if name == "fd" else 1e-9
        torch.testing.assert_close(product, expected, rtol=tol, atol=tol)


def test_a_recomputed_loss_with_a_penalty_has_one_backward_pass():
    model, results = tiny().train(), []
    penalty = JacobianPenalty(PenaltyConfig(weight=0.5), seed=0)
    for recomputed in (False, True):
        if recomputed:
            model.gradient_checkpointing_enable()
        out = model(IDS, labels=IDS, n_loops=3, of_phi=lambda phi, h: penalty.of(phi, h, 0))
        results.append(gradients(model, out.loss + out.penalty))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)

"""The penalties: their formulas re-derived, their gradients by gradcheck, and what they leave alone."""

import pytest
import torch
from torch import nn

from looped_lib.config import ModelConfig, PenaltyConfig
from looped_lib.dynamics.jacobian import dense_jacobian
from looped_lib.models.looped import LoopedTransformer
from looped_lib.regularizers import LastChange, RelativeChange, public_code_penalty
from looped_lib.training import jacobian_penalty
from looped_lib.training.jacobian_penalty import JacobianPenalty

ALL = [(q, p) for q in ("squared_fro", "spectral_norm", "spectral_radius") for p in ("vjp", "jvp", "finite_difference")]
EXACT = [(q, p) for q, p in ALL if p != "finite_difference"]


def transformer(**changes) -> LoopedTransformer:
    config = {"d_model": 4, "n_heads": 2, "d_ff": 6, "dropout": 0.0, "max_len": 4, "init_std": 0.5}
    return LoopedTransformer(ModelConfig(**(config | changes))).double()


def states(rows: int = 2, seq: int = 3) -> torch.Tensor:
    return torch.randn(rows, seq, 4, dtype=torch.float64)


def penalty_config(quantity: str, product: str, iterations: int = 2, **changes) -> PenaltyConfig:
    iterations = 1 if quantity == "squared_fro" else iterations
    return PenaltyConfig(quantity=quantity, product=product, iterations=iterations, **({"share": 1.0} | changes))


def gradient(r: torch.Tensor, model: nn.Module) -> torch.Tensor:
    grads = torch.autograd.grad(r, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


class Constant(nn.Module):
    """Phi(h) = the same matrix for every row, so that persistent vectors meet the same problem at each call."""

    def __init__(self, matrix: torch.Tensor):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def step(self, h: torch.Tensor) -> torch.Tensor:
        return (h.flatten(1) @ self.matrix.T).view_as(h)


@pytest.mark.parametrize("quantity, product", EXACT)
@pytest.mark.parametrize("placement", ["pre_norm", "post_norm", "sandwich_branch", "sandwich_dual"])
def test_gradient_with_respect_to_parameters_by_gradcheck(quantity, product, placement, monkeypatch):
    """Vectors held constant, R as a function of the last product alone is what the gradient must belong to."""
    model, h = transformer(norm_placement=placement), states()
    config = penalty_config(quantity, product, iterations=1)
    vector = torch.randn_like(h)
    if quantity == "spectral_norm":  # its only detached product depends on the parameters: freeze what it returns
        frozen = vector / vector.flatten(1).norm(dim=1)[:, None, None]
        transpose = "jvp" if product == "vjp" else "vjp"
        monkeypatch.setattr(f"looped_lib.dynamics.jacobian.{transpose}", lambda step, h, v: frozen)
    up, out = model.layers[0].mlp.sublayer.up.weight, model.layers[0].attention.sublayer.qkv.weight

    def r(*_):
        return JacobianPenalty(config, 0)(model, h, 0)

    assert torch.autograd.gradcheck(r, (up, out))


@pytest.mark.parametrize("quantity", ["squared_fro", "spectral_norm", "spectral_radius"])
def test_finite_difference_is_close_to_the_exact_product(quantity):
    model, h = transformer(), states()
    exact, approximate = (JacobianPenalty(penalty_config(quantity, p), 0)(model, h, 3) for p in ("jvp", "finite_difference"))
    torch.testing.assert_close(approximate, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient(approximate, model), gradient(exact, model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("product", ["vjp", "jvp", "finite_difference"])
def test_units_and_normalisation(product):
    """R is ||J||_F^2 / N, sigma_max^2 and rho^2, each a mean over rows."""
    model, h = transformer(norm_placement="post_norm"), states(rows=3)
    jacobians = torch.stack([dense_jacobian(model.step, row) for row in h]).detach()
    rho = torch.linalg.eigvals(jacobians).abs().amax(-1)
    expected = {
        "spectral_norm": torch.linalg.matrix_norm(jacobians, 2).square().mean(),
        "spectral_radius": rho.square().mean(),
    }
    for quantity, value in expected.items():
        r = JacobianPenalty(penalty_config(quantity, product, iterations=60), 0)(model, h, 0)
        assert r.item() == pytest.approx(value.item(), rel=0.1)
    probes = JacobianPenalty(penalty_config("squared_fro", product), 0)
    with torch.no_grad():
        r = torch.stack([probes(model, h, training_step) for training_step in range(400)])
    exact = jacobians.square().sum((1, 2)).mean() / h[0].numel()
    assert abs(r.mean() - exact) < 4 * r.std() / 20


@pytest.mark.parametrize("quantity, product", ALL)
def test_nothing_flows_into_the_trajectory(quantity, product):
    model = transformer()
    h = states().requires_grad_()
    JacobianPenalty(penalty_config(quantity, product), 0)(model, h * 2, 0).backward()
    assert h.grad is None
    assert model.layers[0].mlp.sublayer.up.weight.grad.abs().sum() > 0
    assert model.token_embedding.weight.grad is None and model.final_norm.weight.grad is None


@pytest.mark.parametrize("quantity, product", ALL)
def test_dropout_is_off_and_the_mode_comes_back(quantity, product):
    model, h = transformer(dropout=0.5).train(), states()
    penalty = JacobianPenalty(penalty_config(quantity, product), 0)
    in_training = penalty(model, h, 0)
    assert model.training and all(m.training for m in model.modules())
    torch.testing.assert_close(in_training, penalty(model.eval(), h, 0), rtol=0, atol=0)
    assert not model.training


def test_the_mode_comes_back_after_an_error():
    model = transformer().train()
    with pytest.raises(RuntimeError):
        JacobianPenalty(PenaltyConfig(share=1.0), 0)(model, torch.randn(2, 3, 5), 0)
    assert model.training


@pytest.mark.parametrize("rows, share, used", [(4, 0.5, [0, 2]), (5, 0.5, [0, 1, 3]), (4, 0.01, [0]), (3, 1.0, [0, 1, 2])])
def test_share_takes_evenly_spaced_rows_rounded_up(rows, share, used):
    model, h = transformer(), states(rows)
    penalty = JacobianPenalty(PenaltyConfig(share=share), 0)
    r = penalty(model, h, 0)
    for row in range(rows):
        other = h.clone()
        other[row] = 2 * torch.randn_like(other[row])
        assert torch.equal(penalty(model, other, 0), r) == (row not in used)


def test_probes_are_a_function_of_seed_step_and_rank():
    model, h = transformer(), states()
    value = {
        key: JacobianPenalty(penalty_config("squared_fro", "vjp"), key[0])(model, h, *key[1:]).item()
        for key in [(s, t, r) for s in (0, 1) for t in (0, 1) for r in (0, 1)]
    }
    assert len(set(value.values())) == 8
    torch.manual_seed(99)  # the global generator has no part in it, and is not moved
    before = torch.random.get_rng_state()
    assert JacobianPenalty(penalty_config("squared_fro", "vjp"), 1)(model, h, 0, 1).item() == value[1, 0, 1]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("quantity, product", [(q, p) for q, p in ALL if q != "squared_fro"])
def test_a_persistent_vector_converges_over_calls(quantity, product):
    """One iteration a call: a fresh start stays rough, the kept vector reaches the dense value."""
    matrix = 0.1 * torch.randn(12, 12, dtype=torch.float64)
    matrix = matrix + torch.diag(torch.tensor([3.0, 1.0] + [0.5] * 10, dtype=torch.float64))
    exact = torch.linalg.eigvals(matrix).abs().max() if quantity == "spectral_radius" else torch.linalg.matrix_norm(matrix, 2)
    errors = {}
    for persistent in (False, True):
        model, h = Constant(matrix.clone()), states()
        penalty = JacobianPenalty(penalty_config(quantity, product, iterations=1, persistent=persistent), 0)
        for training_step in range(40):
            r = penalty(model, h, training_step)
        errors[persistent] = abs(r.item() / exact.item() ** 2 - 1)
    assert errors[True] < 1e-6 < 1e-3 < errors[False]


def test_persistent_state_goes_through_a_checkpoint():
    model, h = transformer(), states()
    config = penalty_config("spectral_radius", "jvp", persistent=True)
    whole, first, second = (JacobianPenalty(config, 0) for _ in range(3))
    for training_step in range(4):
        expected = [whole(model, h, training_step, rank).item() for rank in (0, 1)]
    for training_step in range(2):
        _ = [first(model, h, training_step, rank) for rank in (0, 1)]
    state = first.state()
    assert len(state) == 2 and all(isinstance(v, torch.Tensor) and not v.requires_grad for v in state.values())
    second.load_state(state)
    for training_step in range(2, 4):
        resumed = [second(model, h, training_step, rank).item() for rank in (0, 1)]
    assert resumed == expected
    with pytest.raises(ValueError, match="shape"):
        second(model, states(rows=3), 4)
    fresh = JacobianPenalty(penalty_config("spectral_radius", "jvp"), 0)
    fresh(model, h, 0)
    assert fresh.state() == {}


def reference_public_code(model, h, v, iterations: int) -> torch.Tensor:
    """The public code's computation, from its description: v <- v^T J, normalised over the whole tensor between."""
    for _ in range(iterations):
        x = h.clone().requires_grad_()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            y = model.step(x)
        v = v / v.square().sum().sqrt()
        v = torch.autograd.grad(y, x, v, create_graph=True)[0]
    return v.square().sum()


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_public_code_preset(iterations, dropout):
    """Same probe, same dropout masks (redrawn each application): same R and, nothing being detached, same gradient."""
    model, h = transformer(dropout=dropout).train(), states()
    config = PenaltyConfig(weight=0.1, share=1.0, public_code=True, iterations=iterations)
    probe = []
    with pytest.MonkeyPatch.context() as patch:
        draw = jacobian_penalty.random_normal
        patch.setattr(jacobian_penalty, "random_normal", lambda *a: probe.append(draw(*a)) or probe[0])
        torch.manual_seed(5)
        r = JacobianPenalty(config, 0)(model, h, 0)
    assert model.training
    torch.manual_seed(5)
    expected = reference_public_code(model, h, probe[0], iterations)
    torch.testing.assert_close(r, expected)
    torch.testing.assert_close(gradient(r, model), gradient(expected, model))
    torch.manual_seed(6)
    moved = JacobianPenalty(config, 0)(model, h, 0)
    assert torch.equal(moved, r) == (dropout == 0.0)


def test_public_code_estimates_the_mean_squared_singular_value():
    """E[R] = ||J||_F^2 / N_all over the whole batch; many iterations reach the worst row's squared radius."""
    assert public_code_penalty() == PenaltyConfig(
        weight=0.1, quantity="squared_fro", product="vjp", iterations=1, share=1.0, onset=2000, public_code=True
    )
    model, h = transformer().eval(), states()
    jacobians = torch.stack([dense_jacobian(model.step, row) for row in h]).detach()
    with torch.no_grad():
        r = torch.stack([JacobianPenalty(public_code_penalty(), 0)(model, h, t) for t in range(400)])
    assert abs(r.mean() - jacobians.square().sum() / h.numel()) < 4 * r.std() / 20
    worst = Constant(torch.diag(torch.linspace(0.1, 1.3, 12)).double())
    config = PenaltyConfig(share=1.0, public_code=True, iterations=100)
    assert JacobianPenalty(config, 0)(worst, h, 0).item() == pytest.approx(1.3**2, rel=1e-6)


def test_l2_penalty_is_the_mean_change_per_token():
    h, before = states(), states()
    expected = sum((h[b, s] - before[b, s]).square().sum().sqrt() for b in range(2) for s in range(3)) / 6
    torch.testing.assert_close(LastChange().value(None, h, before), expected)
    assert torch.autograd.gradcheck(lambda x, y: LastChange().value(None, x, y), (h.requires_grad_(), before.requires_grad_()))


def test_the_relative_change_is_squared_and_per_token():
    h, before = states(), states()
    ratios = [(h[b, s] - before[b, s]).square().sum() / h[b, s].square().sum() for b in range(2) for s in range(3)]
    torch.testing.assert_close(RelativeChange().value(None, h, before), sum(ratios) / 6)
    of_both = (h.requires_grad_(), before.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: RelativeChange().value(None, x, y), of_both)


def test_l2_penalty_has_a_finite_gradient_where_nothing_moved():
    h = states().requires_grad_()
    before = h.detach().clone()
    before[0, 0] += 1.0
    LastChange().value(None, h, before).backward()
    assert torch.isfinite(h.grad).all() and h.grad[0, 0].abs().sum() > 0 and h.grad[0, 1].abs().sum() == 0

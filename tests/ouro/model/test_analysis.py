"""The laboratory's tools on Ouro: Jacobians, spectra, trajectories and fates, through embed, step and readout alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from other_ouro import logits, states
from tiny_ouro import random_ids, sizes_of, tiny

from looped_lib.dynamics.fixed_points import fate
from looped_lib.dynamics.jacobian import dense_jacobian, finite_difference, jvp, vjp
from looped_lib.dynamics.spectrum import arnoldi_radius, exact_radius, exact_squared_fro, lanczos_norm, same_position_blocks
from looped_lib.dynamics.trajectory import logit_lens, trajectory

IDS = random_ids(2, 5)


def on_the_way(model):
    with torch.no_grad():
        return model.step(model.step(model.embed(IDS)))


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 1, "num_key_value_heads": 4}, {"num_hidden_layers": 2}], ids=str)
def test_spectra_are_those_of_the_dense_jacobian(changes):
    model = tiny(torch.float64, hidden_size=16, **changes)
    h = on_the_way(model)
    dense = torch.stack([dense_jacobian(model.step, row) for row in h]).detach()
    blocks = dense.view(2, 5, 16, 5, 16).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    torch.testing.assert_close(same_position_blocks(model.step, h), blocks, rtol=1e-9, atol=1e-11)
    radius = torch.linalg.eigvals(dense).abs().amax(-1)
    torch.testing.assert_close(exact_radius(model.step, h), radius, rtol=1e-8, atol=0)
    torch.testing.assert_close(arnoldi_radius(model.step, h[:1], tol=1e-10), radius[:1], rtol=1e-8, atol=0)
    torch.testing.assert_close(lanczos_norm(model.step, h[:1]), torch.linalg.matrix_norm(dense[:1], 2), rtol=1e-6, atol=0)
    torch.testing.assert_close(exact_squared_fro(model.step, h), dense.square().sum((1, 2)), rtol=1e-9, atol=0)


def test_products_are_those_of_the_dense_jacobian():
    """Finite differences too: every part of a loop keeps float64 states in float64."""
    model = tiny(torch.float64)
    h = on_the_way(model)
    v = torch.randn_like(h)
    for i, row in enumerate(h):
        dense = dense_jacobian(model.step, row)
        torch.testing.assert_close(jvp(model.step, h, v)[i].flatten(), dense @ v[i].flatten(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(vjp(model.step, h, v)[i].flatten(), v[i].flatten() @ dense, rtol=1e-9, atol=1e-9)
        difference = finite_difference(model.step, h, v)[i].flatten()
        torch.testing.assert_close(difference, dense @ v[i].flatten(), rtol=1e-7, atol=1e-7)


def test_attention_written_out_cannot_be_split_into_positions_and_says_so():
    model = tiny(torch.float64)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="mixes positions outside torch.nn.functional.scaled_dot_product_attention"):
        same_position_blocks(model.step, on_the_way(model))


def test_trajectories_hold_the_states_and_the_growth_behind_the_norm():
    model = tiny()
    w = model.state_dict()
    with torch.no_grad():
        path, expected = trajectory(model, IDS, 4), torch.stack(states(w, IDS, 4, sizes_of(model)))
        lens = logit_lens(model, path)
        said = logits(w, expected)
    torch.testing.assert_close(path.states, expected, rtol=1e-5, atol=1e-5)
    before = torch.stack([model.before_norm(h).norm(dim=-1) for h in expected[:-1]])
    torch.testing.assert_close(path.before_norm[1:], before, rtol=1e-4, atol=1e-4)
    assert (path.before_norm[1:] - path.norm[1:]).abs().max() > 0.5
    assert torch.equal(lens.prediction, said.argmax(-1))


def test_fates_are_found():
    model = tiny()
    end = fate(model, IDS, n_loops=400)
    assert set(end.kind) <= {"converged", "cycle", "drift"} and end.state.isfinite().all()
    h = model.embed(IDS)
    with torch.no_grad():
        for _ in range(end.n_loops):
            h = model.step(h)
    assert torch.equal(end.state, h)


COMPILED = """
import torch
from tiny_ouro import random_ids, tiny
torch.set_num_threads(1)
model, ids = tiny(), random_ids(2, 6)
mask = torch.ones_like(ids)
mask[0, :2] = 0
with torch.no_grad():
    expected = model(ids, attention_mask=mask, n_loops=3).logits, model.step(model.embed(ids))
    model.model.step = torch.compile(model.model.step, fullgraph=True, backend="aot_eager")
    got = model(ids, attention_mask=mask, n_loops=3).logits, model.step(model.embed(ids))
for a, b in zip(got, expected, strict=True):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
assert model.model.step(model.embed(ids)).requires_grad
"""


def test_a_compiled_loop_is_the_loop():
    """In a process of its own: the compiler cannot trace through the checks."""
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Trajectories are the states of forward, their scalars what the formulas say; files come back whole or not at all."""

import pytest
import torch
from other_model import OtherModel
from safetensors.torch import save_file

from looped_lib.config import ModelConfig
from looped_lib.dynamics.trajectory import Trajectory, logit_lens, trajectory
from looped_lib.models.looped import LoopedTransformer

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
SMALL = {"d_model": 16, "n_heads": 2, "d_ff": 32, "max_len": 8, "dropout": 0.5, "init_std": 0.3}


@pytest.fixture(params=["pre_norm", "sandwich_dual", "other"])
def model(request):
    torch.manual_seed(0)
    if request.param == "other":
        return OtherModel().double()
    return LoopedTransformer(ModelConfig(norm_placement=request.param, k_layers=2, **SMALL)).double()


def test_states_read_out_to_forward_at_every_depth():
    model = LoopedTransformer(ModelConfig(**SMALL)).double().train()
    path = trajectory(model, IDS, 5)
    assert model.training and path.states.shape == (6, 2, 3, 16) and path.loops.tolist() == list(range(6))
    model.eval()
    for t, h in enumerate(path.states):
        torch.testing.assert_close(model.readout(h), model(IDS, t))


def test_scalars_are_their_formulas(model):
    path = trajectory(model, IDS, 6)
    h = path.states
    torch.testing.assert_close(path.norm, h.norm(dim=-1))
    torch.testing.assert_close(path.from_start.double(), (h - h[0]).norm(dim=-1) / h[0].norm(dim=-1), rtol=1e-5, atol=1e-6)
    moved = (h[1:] - h[:-1]).norm(dim=-1) / h[:-1].norm(dim=-1)
    torch.testing.assert_close(path.residual[1:].double(), moved, rtol=1e-5, atol=1e-6)
    assert path.residual[0].isnan().all() and path.before_norm[0].isnan().all()
    cosine = (h * h[-1]).sum(-1) / h.norm(dim=-1) / h[-1].norm(dim=-1)
    torch.testing.assert_close(path.cosine_to_final.double(), cosine, rtol=1e-5, atol=1e-6)


def test_the_norm_before_the_loops_norm_shows_growth_that_it_hides():
    for placement in ("sandwich_dual", "post_norm"):
        model = LoopedTransformer(ModelConfig(norm_placement=placement, **SMALL)).double().eval()
        path = trajectory(model, IDS, 4)
        block = model.layers[0]
        seen = []
        last_norm = block.mlp.norm_out if placement == "sandwich_dual" else block.mlp.norm
        handle = last_norm.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].norm(dim=-1)))
        model(IDS, 4)
        handle.remove()
        torch.testing.assert_close(path.before_norm[1:].double(), torch.stack(seen), rtol=1e-5, atol=1e-5)
        assert (path.before_norm[1:] - path.norm[1:]).abs().min() > 1e-3
    growing = trajectory(LoopedTransformer(ModelConfig(norm_placement="pre_norm", **SMALL)).double(), IDS, 4)
    torch.testing.assert_close(growing.before_norm[1:].double(), growing.norm[1:])


def test_only_the_loops_asked_for_with_the_same_numbers(model):
    whole, some = trajectory(model, IDS, 9), trajectory(model, IDS, [7, 2, 9])
    assert some.loops.tolist() == [2, 7, 9]
    for name in ("states", "residual", "from_start", "before_norm"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[[2, 7, 9]]), name


def test_dtype_and_parts(model):
    path = trajectory(model, IDS, 4, dtype=torch.float16)
    assert path.states.dtype == torch.float16 and path.residual.dtype == torch.float32
    torch.testing.assert_close(path.states.double(), trajectory(model, IDS, 4).states, rtol=2e-3, atol=2e-3)
    one = path.problem(1).between(2, 3)
    assert torch.equal(one.states, path.states[2:4, 1:2]) and one.loops.tolist() == [2, 3] and one.ids.tolist() == [[4, 5, 6]]
    with pytest.raises(ValueError, match="between loops 7 and 9 is held; there are states from 0 to 4"):
        path.between(7, 9)


def test_logit_lens_reads_out_every_state(model):
    path = trajectory(model, IDS, 5)
    lens = logit_lens(model, path)
    model.eval()
    for t, h in enumerate(path.states):
        p = model.readout(h).softmax(-1)
        assert torch.equal(lens.prediction[t], p.argmax(-1))
        torch.testing.assert_close(lens.entropy[t].double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_recorded_is_refused_before_any_loop(model, monkeypatch):
    monkeypatch.setattr(type(model), "step", lambda *args: pytest.fail("looped"))
    for loops in (0, -3, [], [0], [-1, 4]):
        with pytest.raises(ValueError, match="loop counts of at least 0, the deepest at least 1"):
            trajectory(model, IDS, loops)
    with pytest.raises(ValueError, match=r"1000001 states of 2 x 3 x 16 float64 need 0.8 GB, more than the 0.1 GB allowed"):
        trajectory(model, IDS, 1_000_000, max_bytes=10**8)
    with pytest.raises(ValueError, match="more than the 4.3 GB allowed"):
        trajectory(model, IDS, 10**30)


def test_files_come_back_whole(model, tmp_path):
    path = trajectory(model, IDS, 3)
    path.save(tmp_path / "t.safetensors")
    again = Trajectory.load(tmp_path / "t.safetensors")
    for name in ("ids", "loops", "states", "from_start"):
        assert torch.equal(getattr(again, name), getattr(path, name)), name
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_damaged_and_foreign_files_are_named(model, tmp_path):
    trajectory(model, IDS, 3).save(tmp_path / "t.safetensors")
    blob = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(blob[: len(blob) // 2])
    save_file({"weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="cut.safetensors: not a whole safetensors file"):
        Trajectory.load(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="weights.safetensors: a trajectory holds ids, loops, .*; this file holds weight"):
        Trajectory.load(tmp_path / "weights.safetensors")

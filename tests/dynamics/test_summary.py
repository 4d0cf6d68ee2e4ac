"""What notebook 04 records, on models whose end is known; figures that show just these numbers."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from other_model import OtherModel

from looped_lib.config import ModelConfig
from looped_lib.dynamics.exits import exit_curve
from looped_lib.dynamics.jacobian import dense_jacobian
from looped_lib.dynamics.pca import project_jointly
from looped_lib.dynamics.summary import TOLERANCES, dynamics, dynamics_table, gains, spectra, spectrum_loops
from looped_lib.dynamics.trajectory import logit_lens, trajectory
from looped_lib.models.looped import LoopedTransformer
from looped_lib.plots import curves, heatmaps
from looped_lib.plots.paths import shared_trajectories
from looped_lib.plots.spectra import eigenvalue_cloud, gains_by_loop
from looped_lib.tasks.addition import PAD, generate_problems
from looped_lib.tasks.problems import alike

PROBLEMS = generate_problems(2, 20, seed=0)


def settling() -> LoopedTransformer:
    torch.manual_seed(1)
    config = ModelConfig(norm_placement="post_norm", d_model=16, n_heads=2, d_ff=32, max_len=12, init_std=0.2)
    return LoopedTransformer(config).double().eval()


def growing() -> LoopedTransformer:
    torch.manual_seed(1)
    config = ModelConfig(norm_placement="sandwich_branch", d_model=16, n_heads=2, d_ff=32, max_len=12, init_std=0.2)
    return LoopedTransformer(config).double().eval()


@pytest.fixture(scope="module")
def records():
    models = {"settling": settling(), "growing": growing(), "other": OtherModel().double()}
    return {name: dynamics(m, PROBLEMS, n_problems=4, n_loops=1500, max_depth=30) for name, m in models.items()}


def test_a_run_in_numbers(records):
    settled, grown = records["settling"], records["growing"]
    assert settled["class"] == {"converged": 4, "cycle": 0, "drift": 0, "blow_up": 0} and settled["radius_max"] < 1
    assert grown["class"]["drift"] == 4
    assert settled["rate"] == pytest.approx(settled["radius"], abs=0.02)
    assert settled["exit"]["tolerance"] == list(TOLERANCES)
    curve = exit_curve(settling(), PROBLEMS, TOLERANCES, 30)
    assert settled["exit"]["mean_loops"] == curve.mean_loops.tolist() and settled["exit"]["accuracy"] == curve.accuracy.tolist()
    json.dumps(records, allow_nan=False)


def test_the_radius_is_that_of_the_dense_jacobian(records):
    model, h = settling(), None
    with torch.no_grad():
        h = model.embed(alike(PROBLEMS, 4).inputs)
        for _ in range(1500):
            h = model.step(h)
    radii = [torch.linalg.eigvals(dense_jacobian(model.step, row)).abs().max().item() for row in h]
    assert records["settling"]["radius_max"] == pytest.approx(max(radii), rel=1e-6)


def test_a_state_that_overflows_has_no_radius():
    model = settling()
    model.before_norm, model.loop_norm = model.step, lambda u: u
    model.step = lambda h: h * 1e200
    record = dynamics(model, PROBLEMS, n_problems=2, n_loops=200, max_depth=5)
    assert record["class"]["blow_up"] == 2 and record["radius"] is None
    json.dumps(record, allow_nan=False)


def test_the_table_names_the_cheapest_exit_that_costs_no_accuracy(records):
    exit_ = {"tolerance": [0.1, 0.01, 0.001], "mean_loops": [3.0, 6.0, 20.0], "accuracy": [0.9, 0.995, 0.9955]}
    table = dynamics_table({"a": {**records["settling"], "exit": exit_}})
    assert table.loc["a", "mean loops"] == 6.0 and table.loc["a", "exit tolerance"] == 0.01
    assert table.loc["a", "problems"] == "4 converged"


def test_problems_of_one_length_have_no_padding():
    few = alike(PROBLEMS, 5)
    assert len(few) == 5 and not (few.ids == PAD).any()
    assert set(few.texts()) <= set(PROBLEMS.texts())
    assert len(alike(PROBLEMS, 1000)) <= len(PROBLEMS)


@pytest.fixture(scope="module")
def paths():
    ids = alike(PROBLEMS, 3).inputs
    return {"settling": trajectory(settling(), ids, 12), "growing": trajectory(growing(), ids, 12)}


def test_spectra_of_chosen_loops_are_the_dense_ones(paths):
    found = spectra(settling(), paths["settling"], [1, 8])
    assert list(found) == [1, 8]
    for loop, values in found.items():
        exact = torch.linalg.eigvals(dense_jacobian(settling().step, paths["settling"].states[loop, 0]))
        assert values.abs().max().item() == pytest.approx(exact.abs().max().item(), rel=1e-8)
        assert values.sum().item() == pytest.approx(exact.sum().item(), rel=1e-8)


def test_the_cloud_has_a_frame_per_loop_and_the_unit_circle(paths):
    found = {t: v.numpy() for t, v in spectra(settling(), paths["settling"], [1, 8]).items()}
    figure = eigenvalue_cloud(found, "run")
    circle, cloud = figure.data
    assert np.hypot(circle.x, circle.y) == pytest.approx(1.0)
    assert [f.name for f in figure.frames] == ["1", "8"] == [s.label for s in figure.layout.sliders[0].steps]
    largest = np.abs(found[1]).max()
    assert f"{largest:.4f}" in figure.layout.title.text and cloud.customdata[0] == pytest.approx(largest, abs=1e-5)
    assert figure.frames[1].data[0].customdata[0] == pytest.approx(np.abs(found[8]).max(), abs=1e-5)
    position = np.abs(found[1]).max(1).argmax()
    assert cloud.marker.color[0] == position


def test_gains_are_those_of_the_dense_jacobian(paths):
    loops = spectrum_loops(12)
    assert loops == [1, 2, 4, 8, 12] and spectrum_loops(1) == [1] and spectrum_loops(64)[-2:] == [32, 64]
    found = {name: gains(model, paths[name], loops) for name, model in (("settling", settling()), ("growing", growing()))}
    j = dense_jacobian(settling().step, paths["settling"].states[8, 0])
    assert found["settling"]["radius"][3] == pytest.approx(torch.linalg.eigvals(j).abs().max().item(), rel=1e-8)
    assert found["settling"]["sigma_max"][3] == pytest.approx(torch.linalg.matrix_norm(j, 2).item(), rel=1e-7)
    assert found["settling"]["rms"][3] == pytest.approx((j.square().sum() / len(j)).sqrt().item(), rel=1e-8)
    figure = gains_by_loop(loops, found)
    assert len(figure.data) == 6 and list(figure.data[4].y) == found["growing"]["sigma_max"]
    assert len({(t.line.color, t.xaxis) for t in figure.data}) == 6 and figure.layout.shapes[0].y0 == 1
    assert [t.name for t in figure.data if t.showlegend] == list(found)
    with pytest.raises(ValueError, match="max_depth must be at least 1 loop, got 0"):
        spectrum_loops(0)


def test_exit_and_movement_draw_each_run(paths, records):
    exits = {name: tuple(r["exit"][k] for k in ("tolerance", "mean_loops", "accuracy")) for name, r in records.items()}
    figure = curves.exit_tradeoff(exits)
    assert [t.name for t in figure.data] == list(records)
    assert list(figure.data[0].y) == pytest.approx([100 * a for a in records["settling"]["exit"]["accuracy"]])
    figure = curves.movement(paths)
    assert {t.name for t in figure.data} == set(paths) and sum(t.showlegend for t in figure.data) == 2
    residual = next(t for t in figure.data if t.yaxis == "y3" and t.name == "growing")
    assert residual.y[5] == pytest.approx(paths["growing"].residual[5].mean().item(), rel=1e-5)


@pytest.mark.parametrize("components", [2, 3])
def test_runs_share_axes_in_one_figure(paths, components):
    shared = project_jointly(paths, components)
    figure = shared_trajectories(shared)
    assert [t.name for t in figure.data] == ["settling"] * 3 + ["growing"] * 3 and sum(t.showlegend for t in figure.data) == 2
    assert list(figure.data[4].x) == pytest.approx(shared["growing"].coordinates[:, 1, 0].tolist())


def test_heatmaps_show_every_token_after_every_loop(paths):
    path, labels = paths["settling"], list(alike(PROBLEMS, 3).texts()[1][:-1])
    lens = logit_lens(settling(), path)
    figure = heatmaps.heatmaps(path, lens, labels, "settling", problem=1)
    norm, start, change, entropy = (np.array(t.customdata, dtype=float) for t in figure.data)
    assert norm == pytest.approx(path.norm[:, 1].T.numpy(), rel=1e-5)
    assert start == pytest.approx(path.from_start[:, 1].T.numpy(), rel=1e-5)
    assert entropy == pytest.approx(lens.entropy[:, 1].T.numpy(), rel=1e-5)
    assert np.array(figure.data[2].z)[3, 4] == pytest.approx(math.log10(change[3, 4]), rel=1e-5)
    assert list(figure.layout.yaxis.ticktext) == ["␣" if c == " " else c for c in labels]
    with pytest.raises(ValueError, match="a label for each of the"):
        heatmaps.heatmaps(path, lens, labels[:-1], "settling")


def test_a_heatmap_of_states_that_stand_still_can_be_drawn(paths):
    path = paths["settling"]
    still = replace(path, residual=torch.zeros_like(path.residual))
    assert heatmaps.heatmaps(still, logit_lens(settling(), path), ["x"] * path.ids.shape[1], "still").data

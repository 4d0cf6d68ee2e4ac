"""Runs side by side: grouped by seed, tested over seeds at depths all have, drawn with bands; errors say what to do."""

import json
import shutil
from dataclasses import replace

import pytest
from scipy import stats

from looped_lib.config import to_dict
from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import find_root
from looped_lib.plots.bands import accuracy_bands
from looped_lib.runs import compare as module
from looped_lib.runs.compare import compare
from looped_lib.runs.experiment import run_experiment
from looped_lib.samplers import UniformLoops
from looped_lib.studies.paper import base

ACCURACY = {"plain": (0.5, 0.7, 0.6), "carried": (0.8, 0.9, 0.95)}
DEPTHS = [*range(201), *range(210, 401, 10)]


def write_run(folder, config, depths, accuracy):
    """A finished run, as `run_experiment` writes it."""
    values = {name: [accuracy] * len(depths) for name in ("accuracy", "state_norm", "residual")}
    write_json(folder / "config.json", to_dict(config))
    write_json(folder / "result.json", {"depths": depths, **values, "seconds": {"train": 1.0}, "config": to_dict(config)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "ce": accuracy / s}) + "\n" for s in (1, 2)))


def configs(seed):
    plain = base("smoke", seed)
    return {"plain": plain, "carried": replace(plain, loops=UniformLoops(low=2, high=5))}


@pytest.fixture
def study(tmp_path):
    for seed in range(3):
        for name, config in configs(seed).items():
            write_run(tmp_path / "s" / f"{name}-seed{seed}", config, DEPTHS, ACCURACY[name][seed])
    return tmp_path / "s"


def test_groups_are_runs_that_differ_in_seed_only(study):
    table = compare(study).parameters
    assert table.index.tolist() == ["carried", "plain"] and table.seeds.tolist() == [3, 3]
    assert table.drop(columns=["seeds", "seconds"]).to_dict("index") == {
        "carried": {"loops.kind": "UniformLoops", "loops.low": 2, "loops.high": 5, "loops.n": ""},
        "plain": {"loops.kind": "FixedLoops", "loops.low": "", "loops.high": "", "loops.n": 4},
    }


def test_the_test_is_scipys_paired_one_and_says_so(study):
    table = compare(study, against="plain").test
    assert table.loops.tolist() == ["4", "8", "16", "400", "mean of recorded, 4 to 400"]
    assert set(table.group) == {"carried"} and set(table.test) == {"paired t, 3 shared seeds"}
    expected = stats.ttest_rel(ACCURACY["carried"], ACCURACY["plain"])
    first = table.iloc[0]
    assert first.difference == pytest.approx(sum(ACCURACY["carried"]) / 3 - 0.6)
    assert [first.low, first.high] == pytest.approx(list(expected.confidence_interval(0.95)))
    assert first.p == pytest.approx(expected.pvalue) and table.p_holm.tolist() == pytest.approx([5 * expected.pvalue] * 5)


def test_against_and_depths_are_the_callers(study):
    assert compare(study).test.difference[0] == pytest.approx(0.6 - sum(ACCURACY["carried"]) / 3)  # the first by default
    assert compare(study, depths=[1, 2]).test.loops.tolist() == ["1", "2", "mean of recorded, 4 to 400"]
    with pytest.raises(ValueError, match="one of the groups carried; plain, got 'best'"):
        compare(study, against="best")
    with pytest.raises(ValueError, match="depth 205"):
        compare(study, depths=[4, 205])


def test_different_depth_grids_meet_at_common_depths(study):
    write_run(study / "plain-seed2", configs(2)["plain"], list(range(21)), 0.6)
    found = compare(study)
    assert found.test.loops.tolist() == ["4", "8", "16", "20", "mean of recorded, 4 to 20"]
    deepest = found.curves.groupby("group").depth.max()
    assert deepest.to_dict() == {"carried": 400, "plain": 20}


def test_one_seed_is_no_error(study):
    table = compare([study / "plain-seed0", study / "carried-seed0"]).test
    assert table.difference[0] == pytest.approx(0.3) and set(table.test) == {"none: needs two seeds of each"}
    assert table[["low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert len(compare([study / "plain-seed0"]).test) == 0 and "one group" in repr(compare(study / "plain-seed0"))


def test_other_seeds_are_compared_by_welch(study):
    runs = [study / name for name in ("plain-seed0", "plain-seed1", "carried-seed1", "carried-seed2")]
    assert set(compare(runs).test.test) == {"Welch's t, 2 and 2 seeds"}


def test_runs_of_a_sweep_whose_names_do_not_differ_are_named_by_their_parameters(tmp_path):
    for lr in (1e-3, 2e-3):
        for seed in (0, 1):
            config = replace(base("smoke", seed), training=replace(base("smoke").training, lr=lr))
            write_run(tmp_path / f"lr={lr},seed={seed}" / f"post-seed{seed}", config, [0, 1], lr)
    assert list(compare(tmp_path).parameters.index) == ["training.lr=0.001", "training.lr=0.002"]


def test_a_repeated_run_counts_once(study):
    shutil.copytree(study / "plain-seed0", study.parent / "copies" / "plain-seed0")
    with pytest.warns(UserWarning, match="left out .*copies.*those of .*s/plain-seed0"):
        found = compare([study, study.parent / "copies"])
    assert found.parameters.seeds.tolist() == [3, 3]
    assert compare([study, study]).parameters.seeds.tolist() == [3, 3]  # one folder, named twice


def test_what_is_not_a_finished_run_is_left_out(study):
    write_json(study / "result.json", {})  # of a whole notebook
    write_json(study / "unfinished" / "config.json", to_dict(base("smoke", 9)))
    (study / "plain-seed2" / "result.json").write_text("{")
    odd = study / "carried-seed2" / "result.json"
    write_json(odd, read_json(odd) | {"config": {**to_dict(configs(2)["carried"]), "colour": "red"}})
    with pytest.warns(UserWarning) as warned:
        assert compare(study).parameters.seeds.tolist() == [2, 2]
    texts = [str(w.message) for w in warned]
    assert len(texts) == 2 and "carried-seed2" in texts[0] and "no field colour" in texts[0] and "plain-seed2" in texts[1]


def test_mistakes_are_explained(study, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no finished run in .*empty: a run has result.json"):
        compare([study, tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        compare(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="at least one folder"):
        compare([])
    for name in ("plain-seed0", "carried-seed0"):
        shutil.copytree(study / name, tmp_path / "apart" / name)
    for name, depths in (("plain-seed0", [1, 2]), ("carried-seed0", [3, 4])):
        write_run(tmp_path / "apart" / name, configs(0)[name.split("-")[0]], depths, 0.5)
    with pytest.raises(ValueError, match=r"no common depth \(carried at \[3, 4\]; plain at \[1, 2\]\)"):
        compare(tmp_path / "apart")


def test_the_figures_show_mean_least_and_greatest(study):
    found = compare(study)
    band, mean = found.figure.data[:2]
    assert [t.name for t in found.figure.data if t.name] == ["carried", "plain"]
    assert mean.x[0] == 1 and mean.x[-1] == 400  # a log axis has no 0
    assert mean.y[5] == pytest.approx(100 * sum(ACCURACY["carried"]) / 3)
    assert band.y[0] == pytest.approx(95) and band.y[-1] == pytest.approx(80)
    assert band.legendgroup == mean.legendgroup and "least to the greatest" in found.figure.layout.title.subtitle.text
    training = found.training.data
    assert training[1].y[1] == pytest.approx(sum(ACCURACY["carried"]) / 6) and len(training) == 4
    assert training[1].line.color == mean.line.color
    single = accuracy_bands(found.curves[found.curves.seed == 0])
    assert len(single.data) == 2 and not single.layout.title.subtitle.text


def test_a_cell_shows_everything(study, monkeypatch):
    shown = []
    monkeypatch.setattr(module.go.Figure, "show", lambda figure: shown.append(figure.layout.title.text))
    monkeypatch.setattr("IPython.display.display", shown.append)
    compare(study)._ipython_display_()
    assert shown[1:3] == ["Accuracy against loop count", "Training"] and "paired t" in shown[3].to_html()
    for path in study.glob("*/metrics.jsonl"):
        path.unlink()
    shown.clear()
    compare(study / "plain-seed0")._ipython_display_()
    assert len(shown) == 2


def test_recorded_runs_compare_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = "runs/recorded/norms/cpu/{}-LayerNorm-seed0"
    found = compare([study.format(name) for name in ("pre_norm", "post_norm")])
    assert list(found.parameters.columns) == ["model.norm_placement", "seeds", "seconds"] and len(found.losses) > 0
    result = read_json(find_root() / study.format("pre_norm") / "result.json")
    curve = found.curves[found.curves.group == "pre_norm-LayerNorm"]
    assert curve.depth.tolist() == result["depths"][1:] and curve.accuracy.tolist() == result["accuracy"][1:]


def test_real_runs(tmp_path):
    for seed in (0, 1):
        for name, config in configs(seed).items():
            run_experiment(config, tmp_path / f"{name}-seed{seed}", max_depth=6, progress=False)
    found = compare(tmp_path)
    assert found.parameters.seeds.tolist() == [2, 2] and found.test.loops.tolist() == ["4", "6", "mean of recorded, 4 to 6"]
    assert found.losses.groupby("group").seed.nunique().tolist() == [2, 2]

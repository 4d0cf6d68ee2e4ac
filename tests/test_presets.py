"""Presets: every study exists in every size, its variants differ in what the study is about, and typos are refused."""

from dataclasses import replace

import pytest

from looped_lib import presets
from looped_lib.samplers import LogNormalLoops, PoissonLoops, UniformLoops

STUDIES = {"norm": presets.norm_study, "random": presets.random_loop_study, "jacobian": presets.jacobian_study}


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("study", STUDIES)
def test_variants_are_different_experiments_of_one_size(study, preset):
    configs = STUDIES[study](preset, seed=3)
    assert len({str(c) for c in configs.values()}) == len(configs) > 3
    assert len({str((c.data, c.training, c.seed)) for c in configs.values()}) == 1
    assert all(name.endswith("seed3") for name in configs)


def test_the_paper_preset_is_the_paper():
    """Sizes from the paper's addition study."""
    c = presets.base("paper")
    assert (c.model.d_model, c.model.n_heads, c.model.d_ff, c.model.k_layers, c.model.dropout) == (512, 8, 1024, 1, 0.1)
    t = c.training
    assert (t.steps, t.batch_size, t.lr, t.warmup_steps, t.betas, t.weight_decay) == (10_000, 512, 1e-4, 2000, (0.9, 0.999), 0.01)
    loops = {name.split("-")[0]: c.loops for name, c in presets.random_loop_study("paper").items()}
    assert loops["log_normal"] == LogNormalLoops(low=1, high=100, mu=2.0, sigma=0.7)
    assert isinstance(loops["poisson"], PoissonLoops) and loops["poisson"].rate == 5.0
    assert isinstance(loops["uniform"], UniformLoops)
    stars = presets.jacobian_study("paper", "squared_fro")["squared_fro-seed0"]
    assert stars.penalty.weight == 0.1 and stars.penalty.onset == 2000


def test_norm_study_covers_all_defined_combinations():
    names = presets.norm_study("paper", "all", "all")
    assert len(names) == 4 * 3 + 1 and "post_norm-DeepNorm-seed0" in names


def test_prelude_and_coda_add_blocks_only():
    random, both = (presets.random_loop_study("cpu", v)[f"{v}-seed0"] for v in ("log_normal", "prelude_coda"))
    assert replace(both, model=replace(both.model, prelude_layers=0, coda_layers=0)) == random


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: presets.base("papper"), "preset"),
        (lambda: presets.norm_study("cpu", norm_placement="prenorm"), "norm_placement"),
        (lambda: presets.norm_study("cpu", norm_type="LayerNrom"), "norm_type"),
        (lambda: presets.random_loop_study("cpu", "lognormal"), "variant"),
        (lambda: presets.jacobian_study("cpu", "fro"), "variant"),
    ],
)
def test_unknown_names_are_refused_with_the_choices(call, name):
    with pytest.raises(ValueError, match=f"{name} must be one of "):
        call()

"""Presets: every study exists in every size, its variants differ in what the study is about, and typos are refused."""

import inspect
from dataclasses import replace

import papermill
import pytest

from looped_lib.core.project import find_root
from looped_lib.samplers import LogNormalLoops, PoissonLoops, UniformLoops
from looped_lib.studies import beyond, paper, sizes
from looped_lib.studies.parameters import PARAMETERS, with_values

STUDIES = {"norm": paper.norm_study, "random": paper.random_loop_study, "jacobian": paper.jacobian_study}


@pytest.mark.parametrize("preset", paper.PRESETS)
@pytest.mark.parametrize("study", STUDIES)
def test_variants_are_different_experiments_of_one_size(study, preset):
    configs = STUDIES[study](preset, seed=3)
    assert len({str(c) for c in configs.values()}) == len(configs) > 3
    assert len({str((c.data, c.training, c.seed)) for c in configs.values()}) == 1
    assert all(name.endswith("seed3") for name in configs)


def test_the_paper_preset_is_the_paper():
    """Sizes from the paper's addition study."""
    c = paper.base("paper")
    assert (c.model.d_model, c.model.n_heads, c.model.d_ff, c.model.k_layers, c.model.dropout) == (512, 8, 1024, 1, 0.1)
    t = c.training
    assert (t.steps, t.batch_size, t.lr, t.warmup_steps, t.betas, t.weight_decay) == (10_000, 512, 1e-4, 2000, (0.9, 0.999), 0.01)
    loops = {name.split("-")[0]: c.loops for name, c in paper.random_loop_study("paper").items()}
    assert loops["log_normal"] == LogNormalLoops(low=1, high=100, mu=2.0, sigma=0.7)
    assert isinstance(loops["poisson"], PoissonLoops) and loops["poisson"].rate == 5.0
    assert isinstance(loops["uniform"], UniformLoops)
    stars = paper.jacobian_study("paper", "squared_fro")["squared_fro-seed0"]
    assert stars.penalty.weight == 0.1 and stars.penalty.onset == 2000


def test_norm_study_covers_all_defined_combinations():
    names = paper.norm_study("paper", "all", "all")
    assert len(names) == 4 * 4 and "post_norm-DeepNorm-seed0" in names


def test_prelude_and_coda_add_blocks_only():
    random, both = (paper.random_loop_study("cpu", v)[f"{v}-seed0"] for v in ("log_normal", "prelude_coda"))
    assert replace(both, model=replace(both.model, prelude_layers=0, coda_layers=0)) == random


def test_a_variant_is_a_choice_of_settings():
    """Studies 2 and 3 can be asked by the paper's variants or by the settings themselves."""
    variants = paper.random_loop_study("cpu")
    by_settings = paper.random_loop_study("cpu", distribution="log_normal", prelude=1, coda=1)
    assert by_settings == {"log_normal-prelude1-coda1-seed0": variants["prelude_coda-seed0"]}
    assert paper.random_loop_study("cpu", distribution="log_normal", l2=0.1) == {"log_normal-l2_0.1-seed0": variants["l2-seed0"]}
    variants = paper.jacobian_study("cpu", seed=2)
    by_settings = paper.jacobian_study("cpu", quantity="spectral_norm", iterations=4, seed=2)
    assert by_settings == {"spectral_norm-vjp-4it-w0.1-seed2": variants["spectral_norm-seed2"]}
    assert paper.penalty_study("cpu", "public_code", seed=2).popitem()[1] == variants["public_code-seed2"]
    (one,) = paper.penalty_study("cpu", "spectral_radius", product="jvp", persistent=True, weight=0.01).values()
    assert (one.penalty.product, one.penalty.iterations, one.penalty.persistent, one.penalty.weight) == ("jvp", 1, True, 0.01)


def test_the_weight_of_deepnorm_can_be_set():
    (name, config), *others = paper.norm_study("cpu", "post_norm", "DeepNorm", deepnorm_alpha=2.0).items()
    assert (name, config.model.deepnorm_alpha, others) == ("post_norm-DeepNorm_alpha2-seed0", 2.0, [])
    assert list(paper.norm_study("cpu", "post_norm", "DeepNorm")) == ["post_norm-DeepNorm-seed0"]


def test_settings_beyond_the_paper():
    (plain,) = beyond.beyond_study("cpu", seed=1).values()
    assert plain == paper.jacobian_study("cpu", "random", seed=1)["random-seed1"]
    ((name, config),) = beyond.beyond_study("cpu", injection="diagonal", initial_state="random", backprop_loops=2, seed=1).items()
    assert name == "diagonal-random_start-backprop2-seed1"
    assert replace(config, model=plain.model, training=plain.training) == plain
    assert (config.model.injection, config.model.initial_state, config.training.backprop_loops) == ("diagonal", "random", 2)
    ((name, four),) = beyond.beyond_study("cpu", digits=4, seed=1).items()
    longer = {"data": replace(plain.data, digits=4), "training": replace(plain.training, steps=2 * plain.training.steps)}
    assert name == "none-4digits-4000steps-seed1" and four == replace(plain, **longer)
    ((name, config),) = beyond.input_study("cpu", per_sequence=True).items()
    assert name == "none-per_sequence-seed0" and config.training.per_sequence_loops


@pytest.mark.parametrize("preset", paper.PRESETS)
def test_recipes_differ_in_what_they_say(preset):
    assert tuple(beyond.recipes(preset)) == beyond.RECIPES
    for recipe in beyond.RECIPES:
        ((name, config),) = beyond.beyond_study(preset, recipe, seed=2).items()
        assert name == f"{recipe}-seed2" and config.seed == 2
        assert (config.model.injection == "add") == ("inject" in recipe)
        assert (config.carry.share > 0) == ("carry" in recipe)
        assert (config.penalty.weight > 0) == (recipe in ("stars_carry", "inject_penalty"))
        ((name, four),) = beyond.beyond_study(preset, recipe, digits=4, seed=2).items()
        longer = "" if preset in ("narrow", "paper") else f"{2 ** (4 - config.data.digits) * config.training.steps}steps-"
        assert name == f"{recipe}-4digits-{longer}seed2" and four.data.digits == 4 and (four == config) == (not longer)
    if preset in ("smoke", "cpu"):
        assert beyond.recipe_study(preset, "stars_carry")["stars_carry-seed0"] == paper.tour(preset)["stars"]


@pytest.mark.parametrize("preset", paper.PRESETS)
def test_ingredients_change_one_thing(preset):
    found = beyond.ingredients(preset, seed=1)
    assert tuple(found) == beyond.INGREDIENTS and len(set(map(str, found.values()))) >= len(found) - (preset == "paper")
    stars = found["stars"]
    assert stars == paper.jacobian_study(preset, "public_code", seed=1)["public_code-seed1"]
    for name, config in found.items():
        changed = [
            f for f in ("model", "loops", "penalty", "carry", "data", "training") if getattr(config, f) != getattr(stars, f)
        ]
        assert len(changed) <= 1 or name in ("fixed", "random_half_width", "random_double_width", "inject_noise"), name
    early, late = (found[name].penalty.onset for name in ("stars_early", "stars_late"))
    assert early == 0 <= stars.penalty.onset <= late or preset == "smoke"
    assert beyond.recipe_study(preset, "stars_early", seed=1) == {"stars_early-seed1": found["stars_early"]}


def test_narrow_has_the_papers_loop_counts_and_a_late_penalty():
    c = beyond.ingredients("narrow")["stars"]
    assert c.loops == LogNormalLoops() and c.data.train_file and c.penalty.onset == 0.6 * c.training.steps
    assert (c.model.norm_type, c.model.norm_placement) == ("LayerNorm", "sandwich_dual")


def test_depths_are_compared_by_multiples_of_the_mean():
    """100 loops are 10.6 times the paper's mean; in size cpu, whose mean is 3.1, that is a depth of 33."""
    assert [sizes.comparable_depth(sizes.loops(size)) for size in ("cpu", "narrow", "paper")] == [33, 100, 100]


def test_another_number_of_digits_is_generated_and_trained_as_much_longer():
    four_digits, six = paper.base("paper"), paper.base("paper", digits=6)
    assert four_digits.data.train_file and six.data == replace(four_digits.data, digits=6, train_file="", test_file="")
    steps = 4 * four_digits.training.steps
    assert six == replace(four_digits, data=six.data, training=replace(four_digits.training, steps=steps))
    assert paper.base("paper", digits=3).training == four_digits.training
    three, four = (beyond.recipes("cpu", digits=digits)["stars_carry"] for digits in (3, 4))
    assert four.carry.onset == 2 * three.carry.onset == four.penalty.onset == 2 * three.penalty.onset


@pytest.mark.parametrize("notebook", paper.NOTEBOOKS)
def test_a_notebook_has_the_parameters_of_its_study_with_their_defaults(notebook):
    path = find_root() / "notebooks" / f"{notebook}.ipynb"
    of_notebook = {name: eval(p["default"]) for name, p in papermill.inspect_notebook(str(path)).items()}
    known = {*inspect.signature(paper.NOTEBOOKS[notebook]).parameters} - {"settings"}
    assert known <= set(of_notebook) <= known | {*PARAMETERS, "max_depth", "out"}
    assert paper.configs(notebook, of_notebook) == paper.configs(notebook, {"preset": of_notebook["preset"]})
    if notebook != "00_tour":
        assert f'configs("{notebook}", vars())' in path.read_text().replace("\\", "")


def test_each_parameter_is_a_field_of_the_config():
    experiment = sizes.base("smoke")
    for name, (path, _) in PARAMETERS.items():
        part, field = path.split(".")
        assert with_values(experiment, **{name: getattr(getattr(experiment, part), field)}) == experiment
    with pytest.raises(ValueError, match="unknown parameter preludes; a study's settings are norm_placement, "):
        paper.loops_study("smoke", preludes=1)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: paper.base("papper"), "preset"),
        (lambda: paper.norm_study("cpu", norm_placement="prenorm"), "norm_placement"),
        (lambda: paper.norm_study("cpu", norm_type="LayerNrom"), "norm_type"),
        (lambda: paper.random_loop_study("cpu", "lognormal"), "variant"),
        (lambda: paper.jacobian_study("cpu", "fro"), "variant"),
        (lambda: paper.loops_study("cpu", "lognormal"), "distribution"),
        (lambda: paper.penalty_study("cpu", "fro"), "quantity"),
        (lambda: paper.penalty_study("cpu", product="jpv"), "product"),
        (lambda: beyond.input_study("cpu", injection="sum"), "injection"),
        (lambda: beyond.input_study("cpu", initial_state="noise"), "initial_state"),
        (lambda: beyond.recipe_study("cpu", "starz"), "recipe"),
    ],
)
def test_unknown_names_are_refused_with_the_choices(call, name):
    with pytest.raises(ValueError, match=f"{name} must be one of "):
        call()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: paper.norm_study("cpu", "post_norm", "LayerNorm", 2.0), "deepnorm_alpha belongs to norm_type 'DeepNorm'"),
        (lambda: paper.random_loop_study("cpu", "l2", "poisson"), "variant and distribution are two ways"),
        (lambda: paper.random_loop_study("cpu", coda=1), "prelude, coda and l2 go with distribution"),
        (lambda: paper.jacobian_study("cpu", "random", "squared_fro"), "variant and quantity are two ways"),
        (lambda: paper.jacobian_study("cpu", weight=0.2), "weight go with quantity: give one of squared_fro"),
        (lambda: paper.penalty_study("cpu", iterations=4), "iterations must be 1 for 'squared_fro'"),
        (lambda: beyond.beyond_study("cpu", "carry", injection="add"), "recipe and injection are two ways"),
        (lambda: beyond.input_study("cpu", initial_state="random"), "initial_state 'random' needs an injection"),
        (lambda: beyond.input_study("cpu", backprop_loops=2, per_sequence=True), "one loop count per batch"),
        (lambda: paper.penalty_study("cpu", persistent=True), "persistent keeps power-iteration vectors"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""The experiments of the paper, as functions from a preset's name (see `sizes`) to {run name: ExperimentConfig}.

In size `paper` every run has the settings of the authors' public code (runs/PAPER.md lists them, and what stays different).

A study's variants differ in what the study is about and in nothing else. Studies 2 and 3 can be asked in two ways: by a `variant`
of the paper's, or by the settings themselves (see `parameters`), which gives exactly one run. An invalid value is a ValueError
that names the parameter or the config's field. `configs` is what a notebook trains with its parameters.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from looped_lib.config import CarryConfig, ExperimentConfig, ModelConfig, PenaltyConfig
from looped_lib.models.config import NormPlacement, NormType
from looped_lib.regularizers import LastChange, Quantity, public_code_penalty
from looped_lib.studies.beyond import beyond_study, recipes
from looped_lib.studies.parameters import PARAMETERS, changed, run_name, with_values
from looped_lib.studies.sizes import PRESETS, Configs, base, choose, loops, one_of, onset


def norm_study(
    preset: str,
    norm_placement: str = "all",
    norm_type: str = "LayerNorm",
    deepnorm_alpha: float = ModelConfig.deepnorm_alpha,
    seed: int = 0,
) -> Configs:
    """Section 4.1: where the norm stands and which it is, trained at depth 4. "all" takes every value."""
    placements, types = get_args(NormPlacement), get_args(NormType)
    experiment = base(preset, seed)
    other_alpha = deepnorm_alpha != ModelConfig.deepnorm_alpha
    if other_alpha and norm_type not in ("DeepNorm", "all"):
        raise ValueError(f"deepnorm_alpha belongs to norm_type 'DeepNorm', got {deepnorm_alpha} for {norm_type!r}")
    configs = {}
    for placement in choose("norm_placement", norm_placement, placements):
        for kind in choose("norm_type", norm_type, types):
            alpha = {"deepnorm_alpha": deepnorm_alpha} if kind == "DeepNorm" else {}
            name = f"{kind}_alpha{deepnorm_alpha:g}" if alpha and other_alpha else kind
            values = {"norm_placement": placement, "norm_type": kind, **alpha}
            configs[run_name(seed, placement, name)] = with_values(experiment, **values)
    return configs


def random_loop_study(
    preset: str,
    variant: str = "all",
    distribution: str = "",
    norm_placement: str = "",
    l2: float = 0.0,
    seed: int = 0,
    **settings: Any,
) -> Configs:
    """Section 4.2: random loop counts without Jacobian, by `variant`, or as `loops_study` if `distribution` is given."""
    if distribution:
        _no_variant(variant, "distribution")
        return loops_study(preset, distribution, norm_placement, l2, seed, **settings)
    if l2 or changed(base(preset), settings):
        raise ValueError("prelude, coda and l2 go with distribution: give one of log_normal, poisson, uniform")
    variants = {
        "log_normal": {},
        "poisson": {"distribution": "poisson"},
        "uniform": {"distribution": "uniform"},
        "prelude": {"prelude": 1},
        "coda": {"coda": 1},
        "prelude_coda": {"prelude": 1, "coda": 1},
        "l2": {"l2": L2_WEIGHT[preset]},
    }
    placement = norm_placement or PLACEMENT.get(preset, "")
    return {
        run_name(seed, name, placement): only(loops_study(preset, norm_placement=placement, seed=seed, **variants[name]))
        for name in choose("variant", variant, tuple(variants))
    }


def loops_study(
    preset: str, distribution: str = "log_normal", norm_placement: str = "", l2: float = 0.0, seed: int = 0, **settings: Any
) -> Configs:
    """One run: a loop-count distribution, where the norm stands, the weight of the L2 penalty, and as `settings` unlooped blocks
    around the loop (`prelude`, `coda`).

    An empty `norm_placement` is that of all studies, sandwich_dual; in size `paper` it is sandwich_branch, as in the public
    training script of this section (whose test file has sandwich_dual). There the L2 penalty begins with the first step, too.
    """
    experiment = replace(base(preset, seed), loops=loops(preset, distribution))
    shown = changed(experiment, settings)
    placement = norm_placement or PLACEMENT.get(preset, "")
    experiment = with_values(experiment, **settings, norm_placement=placement or experiment.model.norm_placement)
    if l2:
        begin = 0 if preset == "paper" else onset(preset, experiment)
        experiment = replace(experiment, terms={"l2": LastChange(weight=l2, onset=begin)})
    return {run_name(seed, distribution, shown, f"l2_{l2:g}" * (l2 != 0), placement): experiment}


def jacobian_study(preset: str, variant: str = "all", quantity: str = "", seed: int = 0, **settings: Any) -> Configs:
    """Section 4.3: random loops alone, and with each Jacobian penalty (w = 0.1, from the onset on), by the paper's `variant`; or
    as `penalty_study` if `quantity` is given.

    `public_code` has the public penalty; `public` is the whole run as the public code really makes it: its four loader workers
    read the same file, so that each batch comes four times in a row, in the order of the file.
    """
    if quantity:
        _no_variant(variant, "quantity")
        return penalty_study(preset, quantity, seed, **settings)
    experiment = replace(base(preset, seed), loops=loops(preset))
    if given := changed(with_values(experiment, weight=WEIGHT), settings):
        raise ValueError(f"{', '.join(given)} go with quantity: give one of {', '.join((*get_args(Quantity), 'public_code'))}")
    begin = onset(preset, experiment)
    on = {"weight": WEIGHT, "onset": begin, "share": _share(preset)}
    public = {"penalty": replace(public_code_penalty(), onset=begin)}
    changes = {
        "random": {},
        "squared_fro": {"penalty": PenaltyConfig(**on)},
        "spectral_norm": {"penalty": PenaltyConfig(quantity="spectral_norm", iterations=4, **on)},
        "spectral_radius": {"penalty": PenaltyConfig(quantity="spectral_radius", iterations=4, **on)},
        "public_code": public,
        "squared_fro_carry": {
            "penalty": PenaltyConfig(**on),
            "carry": CarryConfig(share=0.5, onset=max(begin, experiment.training.steps // 2)),
        },
    }
    all_variants = tuple(changes)
    changes["public"] = public | {"training": replace(experiment.training, batch_repeats=4, shuffle=False)}
    chosen = all_variants if variant == "all" else (one_of("variant", variant, (*changes, "all")),)
    return {run_name(seed, name): replace(experiment, **changes[name]) for name in chosen}


def penalty_study(preset: str, quantity: str = "squared_fro", seed: int = 0, **settings: Any) -> Configs:
    """One run: random loops with one estimator of one quantity of the Jacobian, from the onset on.

    `settings` are `product`, `iterations`, `persistent` and `weight` (default: 0.1).
    """
    one_of("quantity", quantity, (*get_args(Quantity), "public_code"))
    experiment = replace(base(preset, seed), loops=loops(preset))
    start = public_code_penalty() if quantity == "public_code" else PenaltyConfig(quantity=quantity, share=_share(preset))
    settings = {"product": start.product, "iterations": start.iterations, "weight": WEIGHT} | settings
    penalised = replace(experiment, penalty=replace(start, onset=onset(preset, experiment)))
    shown = {name: settings[name] for name in PARAMETERS if settings.get(name)}
    return {run_name(seed, quantity, shown): with_values(penalised, **settings)}


def tour(preset: str, seed: int = 0) -> Configs:
    """Three small models that solve three-digit addition at depth 4: fixed depth, random loops, and STARS (as `recipes` says)."""
    found = recipes(one_of("preset", preset, PRESETS[:2]), seed)
    fixed = base(preset, seed)
    return {
        "fixed": replace(fixed, model=replace(fixed.model, norm_placement="sandwich_branch")),
        "random": found["random"],
        "stars": found["stars_carry"],
    }


L2_WEIGHT = {preset: 1.0 if preset == "paper" else 0.1 for preset in PRESETS}
"""Weight of the L2 penalty of section 4.2, by preset."""
PLACEMENT = {"paper": "sandwich_branch"}
"""Where the norm stands in section 4.2, by preset; where not given, as in all studies."""

WEIGHT = 0.1
"""Of the Jacobian penalty, where nothing else is said."""

NOTEBOOKS: dict[str, Callable[..., Configs]] = {
    "00_tour": tour,
    "01_norm_placement": norm_study,
    "02_random_loops": random_loop_study,
    "03_jacobian_regularization": jacobian_study,
    "09_beyond_the_paper": beyond_study,
}
"""What makes the configs of a notebook."""


def configs(notebook: str, values: Mapping[str, Any]) -> Configs:
    """What a notebook of NOTEBOOKS trains, given its parameters by their names; other names in `values` do not count."""
    make = NOTEBOOKS[notebook]
    known = inspect.signature(make).parameters
    settings = PARAMETERS if "settings" in known else {}
    return make(**{name: value for name, value in values.items() if name in known or name in settings})


def _share(preset: str) -> float:
    """Of the batch, that the penalty is estimated on: all of it in the paper's size, as in the public code."""
    return 1.0 if preset == "paper" else PenaltyConfig.share


def only(configs: Configs) -> ExperimentConfig:
    """The one experiment of a study's function."""
    (config,) = configs.values()
    return config


def _no_variant(variant: str, instead: str) -> None:
    if variant != "all":
        raise ValueError(f"variant and {instead} are two ways to ask: leave variant at 'all', got {variant!r}")

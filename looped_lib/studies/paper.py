"""The experiments of the paper, as functions from a preset's name (see `sizes`) to {run name: ExperimentConfig}.

In size `paper` every run has the settings of the authors' public code (runs/PAPER.md lists them, and what stays different).

A study's variants differ in what the study is about and in nothing else. Studies 2 and 3 can be asked in two ways: by a `variant`
of the paper's, or by the settings themselves, which gives exactly one run. A value that cannot be meant is a ValueError that
names the parameter. `CONFIGS` says which function a notebook calls, with the notebook's own parameters.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from looped_lib.config import (
    CarryConfig,
    ExperimentConfig,
    ModelConfig,
    NormPlacement,
    NormType,
    PenaltyConfig,
    Product,
    Quantity,
)
from looped_lib.regularizers import public_code_penalty
from looped_lib.studies.beyond import beyond_study, recipes
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
            model = replace(experiment.model, norm_placement=placement, norm_type=kind, **alpha)
            name = f"{kind}_alpha{deepnorm_alpha:g}" if alpha and other_alpha else kind
            configs[f"{placement}-{name}-seed{seed}"] = replace(experiment, model=model)
    return configs


def random_loop_study(
    preset: str,
    variant: str = "all",
    distribution: str = "",
    prelude: int = 0,
    coda: int = 0,
    l2: float = 0.0,
    norm_placement: str = "",
    seed: int = 0,
) -> Configs:
    """Section 4.2: random loop counts without Jacobian, by `variant`, or as `loops_study` if `distribution` is given."""
    if distribution:
        _no_variant(variant, "distribution")
        return loops_study(preset, distribution, prelude, coda, l2, norm_placement, seed)
    if (prelude, coda, l2) != (0, 0, 0):
        raise ValueError("prelude, coda and l2 go with distribution: give one of log_normal, poisson, uniform")
    changes = {
        "log_normal": {},
        "poisson": {"distribution": "poisson"},
        "uniform": {"distribution": "uniform"},
        "prelude": {"prelude": 1},
        "coda": {"coda": 1},
        "prelude_coda": {"prelude": 1, "coda": 1},
        "l2": {"l2": L2_WEIGHT[preset]},
    }
    placement = norm_placement or PLACEMENT.get(preset, "")
    end = f"{placement}-" * bool(placement) + f"seed{seed}"
    return {
        f"{name}-{end}": _only(loops_study(preset, norm_placement=placement, seed=seed, **changes[name]))
        for name in choose("variant", variant, tuple(changes))
    }


def loops_study(
    preset: str,
    distribution: str = "log_normal",
    prelude: int = 0,
    coda: int = 0,
    l2: float = 0.0,
    norm_placement: str = "",
    seed: int = 0,
) -> Configs:
    """One run: a loop-count distribution, unlooped blocks around the loop, the L2 penalty's weight, and where the norm stands.

    An empty `norm_placement` is that of all studies, sandwich_dual; in size `paper` it is sandwich_branch, as in the public
    training script of this section (whose test file has sandwich_dual). There the L2 penalty begins with the first step, too.
    """
    experiment = replace(base(preset, seed), loops=loops(preset, distribution))
    model = replace(experiment.model, prelude_layers=prelude, coda_layers=coda)
    if placement := norm_placement or PLACEMENT.get(preset, ""):
        model = replace(model, norm_placement=one_of("norm_placement", placement, get_args(NormPlacement)))
    experiment = replace(experiment, model=model)
    if l2:
        begin = 0 if preset == "paper" else onset(preset, experiment)
        experiment = replace(experiment, penalty=PenaltyConfig(l2_weight=l2, onset=begin))
    parts = [distribution, f"prelude{prelude}" * (prelude > 0), f"coda{coda}" * (coda > 0), f"l2_{l2:g}" * (l2 > 0), placement]
    return {"-".join(filter(None, [*parts, f"seed{seed}"])): experiment}


def jacobian_study(
    preset: str,
    variant: str = "all",
    quantity: str = "",
    product: str = "vjp",
    iterations: int = 1,
    persistent: bool = False,
    weight: float = 0.1,
    seed: int = 0,
) -> Configs:
    """Section 4.3: random loops alone, and with each Jacobian penalty (w = 0.1, from the onset on), by the paper's `variant`; or
    as `penalty_study` if `quantity` is given.

    `public_code` has the public penalty; `public` is the whole run as the public code really makes it: its four loader workers
    read the same file, so that each batch comes four times in a row, in the order of the file.
    """
    settings = {"product": product, "iterations": iterations, "persistent": persistent, "weight": weight}
    if quantity:
        _no_variant(variant, "quantity")
        return penalty_study(preset, quantity, **settings, seed=seed)
    if settings != {"product": "vjp", "iterations": 1, "persistent": False, "weight": 0.1}:
        raise ValueError(f"{', '.join(settings)} go with quantity: give one of {', '.join((*get_args(Quantity), 'public_code'))}")
    experiment = replace(base(preset, seed), loops=loops(preset))
    begin = onset(preset, experiment)
    on = {"weight": 0.1, "onset": begin, "share": _share(preset)}
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
    return {f"{name}-seed{seed}": replace(experiment, **changes[name]) for name in chosen}


def penalty_study(
    preset: str,
    quantity: str = "squared_fro",
    product: str = "vjp",
    iterations: int = 1,
    persistent: bool = False,
    weight: float = 0.1,
    seed: int = 0,
) -> Configs:
    """One run: random loops with one estimator of one quantity of the Jacobian, from the onset on."""
    one_of("quantity", quantity, (*get_args(Quantity), "public_code"))
    one_of("product", product, get_args(Product))
    experiment = replace(base(preset, seed), loops=loops(preset))
    start = public_code_penalty() if quantity == "public_code" else PenaltyConfig(quantity=quantity, share=_share(preset))
    settings = {"product": product, "iterations": iterations, "persistent": persistent, "weight": weight}
    name = f"{quantity}-{product}-{iterations}it{'-persistent' * persistent}-w{weight:g}-seed{seed}"
    return {name: replace(experiment, penalty=replace(start, **settings, onset=onset(preset, experiment)))}


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

CONFIGS: dict[str, Callable[..., Configs]] = {
    "00_tour": tour,
    "01_norm_placement": norm_study,
    "02_random_loops": random_loop_study,
    "03_jacobian_regularization": jacobian_study,
    "09_beyond_the_paper": beyond_study,
}
"""By notebook: what makes its configs from its parameters, all but `max_depth` and `out`."""


def _share(preset: str) -> float:
    """Of the batch, that the penalty is estimated on: all of it in the paper's size, as in the public code."""
    return 1.0 if preset == "paper" else PenaltyConfig.share


def _only(configs: Configs) -> ExperimentConfig:
    (config,) = configs.values()
    return config


def _no_variant(variant: str, instead: str) -> None:
    if variant != "all":
        raise ValueError(f"variant and {instead} are two ways to ask: leave variant at 'all', got {variant!r}")

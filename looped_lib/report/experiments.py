"""The experiments that claims and figures speak of, each a function from a size to {name: config}."""

from collections.abc import Sequence
from typing import get_args

from looped_lib.config import ExperimentConfig
from looped_lib.models.config import NormPlacement
from looped_lib.studies.beyond import RECIPES, input_study, recipe_study
from looped_lib.studies.paper import L2_WEIGHT, jacobian_study, loops_study, norm_study, only, penalty_study
from looped_lib.studies.sizes import Configs

GROWING, BOUNDED = ("pre_norm", "sandwich_branch"), ("post_norm", "sandwich_dual")
TYPES = ("LayerNorm", "RMSNorm", "SimpleNorm")
VJP, RANDOM = "squared_fro, VJP", "random loops"
CUTS = (1, 2, 4)
ESTIMATORS = {
    VJP: {},
    "squared_fro, JVP": {"product": "jvp"},
    "squared_fro, finite difference": {"product": "finite_difference"},
    "spectral_norm, 1 iteration": {"quantity": "spectral_norm"},
    "spectral_norm, 4 iterations": {"quantity": "spectral_norm", "iterations": 4},
    "spectral_norm, persistent": {"quantity": "spectral_norm", "persistent": True},
    "spectral_radius, 1 iteration": {"quantity": "spectral_radius"},
    "spectral_radius, 4 iterations": {"quantity": "spectral_radius", "iterations": 4},
    "spectral_radius, persistent": {"quantity": "spectral_radius", "persistent": True},
    "public code": {"quantity": "public_code"},
}
LIGHT = [name for name in ESTIMATORS if "persistent" not in name and name != "public code"]


def placements(size: str, names: Sequence[str] = get_args(NormPlacement), norm_type: str = "LayerNorm") -> Configs:
    """Section 4.1 with one norm type, by placement."""
    return {name: only(norm_study(size, name, norm_type)) for name in names}


def distributions(size: str, prelude: int = 0, coda: int = 0, l2: bool = False) -> Configs:
    """Section 4.2, by distribution, with unlooped blocks and the L2 penalty or without."""
    settings = {"prelude": prelude, "coda": coda, "l2": l2 * L2_WEIGHT[size]}
    return {name: only(loops_study(size, name, **settings)) for name in ("log_normal", "poisson", "uniform")}


def stars(size: str) -> Configs:
    """Section 4.3: our penalty, that of the public code, and the paper's words (spectral radius by power iteration)."""
    return {
        "squared Frobenius norm by a VJP": only(penalty_study(size)),
        "as the public code": only(penalty_study(size, "public_code")),
        "spectral radius by four iterations": only(penalty_study(size, "spectral_radius", iterations=4)),
    }


def estimators(size: str, weight: float = 0.1) -> Configs:
    """Random loops alone, and with each estimator of the penalty that the study `stars` runs at this weight, 0.1 or 0.01."""
    names = ESTIMATORS if weight == 0.1 else LIGHT
    penalised = {name: only(penalty_study(size, **ESTIMATORS[name], weight=weight)) for name in names}
    return {RANDOM: random_loops(size)} | penalised


def weighted_estimators(size: str) -> Configs:
    """Those of both weights: the same weight is not the same strength for different quantities."""
    light = {f"{name}, w = 0.01": config for name, config in estimators(size, 0.01).items() if name != RANDOM}
    return estimators(size) | light


def random_loops(size: str) -> ExperimentConfig:
    """What all of them start from."""
    return only(jacobian_study(size, "random"))


def recipes(size: str, digits: int = 0) -> Configs:
    """Candidates for the cheapest training that holds, on numbers of the size's digits or of so many."""
    return {name: only(recipe_study(size, name, digits)) for name in RECIPES}


def inputs(size: str) -> Configs:
    """Random loops with the input injected, from the embedding or from noise."""
    kinds = {kind: only(input_study(size, kind)) for kind in ("none", "add", "concat", "diagonal")}
    noise = {f"{kind}, from noise": only(input_study(size, kind, "random")) for kind in ("add", "concat", "diagonal")}
    return kinds | noise


def gradients(size: str) -> Configs:
    """Random loops with gradients cut short, and with a depth for each sequence."""
    cut = {last(k): only(input_study(size, backprop_loops=k)) for k in CUTS}
    return {"all loops": random_loops(size), **cut, "a depth per sequence": only(input_study(size, per_sequence=True))}


def last(loops: int) -> str:
    """What gradients go through."""
    return f"last {loops} loops" if loops > 1 else "last loop"

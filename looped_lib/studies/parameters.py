"""The parameters of the studies that are settings of a config: where each stands in it, and how a run's name shows it."""

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

from looped_lib.config import ExperimentConfig

PARAMETERS = {
    "norm_placement": ("model.norm_placement", "{}"),
    "norm_type": ("model.norm_type", "{}"),
    "deepnorm_alpha": ("model.deepnorm_alpha", "alpha{:g}"),
    "prelude": ("model.prelude_layers", "prelude{}"),
    "coda": ("model.coda_layers", "coda{}"),
    "injection": ("model.injection", "{}"),
    "initial_state": ("model.initial_state", "{}_start"),
    "product": ("penalty.product", "{}"),
    "iterations": ("penalty.iterations", "{}it"),
    "persistent": ("penalty.persistent", "persistent"),
    "weight": ("penalty.weight", "w{:g}"),
    "backprop_loops": ("training.backprop_loops", "backprop{}"),
    "per_sequence": ("training.per_sequence_loops", "per_sequence"),
}


def with_values(experiment: ExperimentConfig, **values: Any) -> ExperimentConfig:
    """The experiment with values of PARAMETERS. ValueError on a name that is none, or on a value that the config refuses."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        part, _, field = _path(name).partition(".")
        parts.setdefault(part, {})[field] = value
    return replace(experiment, **{part: replace(getattr(experiment, part), **changes) for part, changes in parts.items()})


def changed(experiment: ExperimentConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that the experiment does not have already, in the order of PARAMETERS."""
    return {n: values[n] for n in PARAMETERS if n in values and attrgetter(_path(n))(experiment) != values[n]}


def run_name(seed: int, *parts: str | Mapping[str, Any]) -> str:
    """The name of a run: words, values of PARAMETERS as they are shown, and the seed."""
    words: list[str] = []
    for part in parts:
        words += [part] if isinstance(part, str) else [PARAMETERS[name][1].format(value) for name, value in part.items()]
    return "-".join([*filter(None, words), f"seed{seed}"])


def _path(name: str) -> str:
    if name not in PARAMETERS:
        raise ValueError(f"unknown parameter {name}; a study's settings are {', '.join(PARAMETERS)}")
    return PARAMETERS[name][0]

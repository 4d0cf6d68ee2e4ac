"""Configs: JSON without loss, and one clear error for every bad value, naming the field."""

import json
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from looped_lib import config as c
from looped_lib.config import ConfigError, ExperimentConfig, differences, from_dict, to_dict
from looped_lib.models.norms import Norm
from looped_lib.samplers import LogNormalPoissonLoops, LoopSampler
from looped_lib.studies.paper import jacobian_study, norm_study, random_loop_study, tour
from looped_lib.tasks.addition import Addition


def test_every_experiment_survives_json():
    for configs in (norm_study("cpu", "all", "all"), random_loop_study("cpu"), jacobian_study("cpu"), tour("cpu")):
        for experiment in configs.values():
            assert from_dict(ExperimentConfig, json.loads(json.dumps(to_dict(experiment)))) == experiment
    other = replace(ExperimentConfig(), loops=LogNormalPoissonLoops())
    assert from_dict(ExperimentConfig, json.loads(json.dumps(to_dict(other)))) == other


not_whole = st.one_of(st.floats(), st.text(), st.none(), st.booleans(), st.integers(max_value=-1))
not_number = st.one_of(st.text(), st.none(), st.booleans(), st.just(float("nan")), st.floats(max_value=-1e-9))
WHOLE = {
    c.ModelConfig: ["d_model", "n_heads", "d_ff", "k_layers", "prelude_layers", "coda_layers", "vocab_size", "max_len"],
    c.PenaltyConfig: ["iterations", "onset"],
    c.CarryConfig: ["max_loops", "onset"],
    Addition: ["digits", "n_train", "n_test", "seed"],
    c.TrainingConfig: [
        "steps",
        "batch_size",
        "batch_repeats",
        "accumulation",
        "warmup_steps",
        "log_every",
        "checkpoint_every",
        "backprop_loops",
    ],
    ExperimentConfig: ["seed"],
}
NUMBER = {
    c.ModelConfig: ["dropout", "deepnorm_alpha", "init_std", "rms_eps"],
    c.PenaltyConfig: ["weight", "share"],
    c.CarryConfig: ["share"],
    c.TrainingConfig: ["lr", "lr_end", "weight_decay", "grad_clip"],
}


@pytest.mark.parametrize(("cls", "name"), [(k, n) for k, names in WHOLE.items() for n in names])
@given(value=not_whole)
def test_whole_numbers_are_checked(cls, name, value):
    with pytest.raises(ConfigError, match=rf"{cls.__name__}\.{name} must be a whole number of at least [01], got"):
        cls(**{name: value})


@pytest.mark.parametrize(("cls", "name"), [(k, n) for k, names in NUMBER.items() for n in names])
@given(value=not_number)
def test_numbers_are_checked(cls, name, value):
    with pytest.raises(ConfigError, match=rf"{cls.__name__}\.{name} must be a number in"):
        cls(**{name: value})


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        *((c.ModelConfig, n) for n in ("norm_placement", "norm_type", "final_norm", "injection", "initial_state")),
        *((c.PenaltyConfig, n) for n in ("quantity", "product")),
        (c.TrainingConfig, "precision"),
    ],
)
@given(value=st.one_of(st.text(), st.none(), st.integers()))
def test_choices_are_listed(cls, name, value):
    assume(value not in (*get_args(cls.__annotations__[name]), *Norm.kinds))  # hypothesis tries those of the code
    with pytest.raises(ConfigError, match=rf"{cls.__name__}\.{name} must be one of '"):
        cls(**{name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sede": 1}, "run.json: ExperimentConfig has no field sede; it has model, loops"),
        ({"model": {"width": 8}}, "run.json: ModelConfig has no field width"),
        ({"model": {"d_model": 10, "n_heads": 3}}, r"run.json: ModelConfig.n_heads must divide d_model \(10\), got 3"),
        ({"loops": {"kind": "Fixed"}}, "run.json: loops.kind must be one of 'FixedLoops', 'LogNormalLoops'"),
        ({"loops": {"kind": "FixedLoops", "n": 0}}, "run.json: FixedLoops.n"),
        ({"loops": 4}, "run.json: LoopSampler must be a mapping"),
        ({"training": {"betas": [0.9]}}, "run.json: TrainingConfig.betas must be 2 numbers"),
        ({"training": {"batch_size": 10, "accumulation": 3}}, "accumulation must divide batch_size"),
        ({"training": {"betas": None}}, "run.json: TrainingConfig.betas must be a list of float, got None"),
        ({"training": {"lr": 10**400}}, "run.json: TrainingConfig.lr must be a number in"),
        (
            {"training": {"steps": 10**30}},
            "run.json: TrainingConfig.steps must be a whole number of at most 2147483647",
        ),
        ({"seed": 2**64}, "run.json: ExperimentConfig.seed must be a whole number of at most"),
        ({"loops": {"kind": []}}, r"run.json: loops.kind must be one of .*, got \[\]"),
        (
            {"loops": {"kind": "UniformLoops", "high": 10**9}},
            "UniformLoops.high must be a whole number of at most 10000",
        ),
        ({"data": {"train_file": 5, "test_file": 5}}, "run.json: Addition.train_file must be a text, got 5"),
        ({"data": {"train_file": "a\0", "test_file": "b"}}, "Addition.train_file must be a text of characters that UTF-8"),
        ({"data": {"train_file": "a"}}, "train_file and test_file go together"),
        ({"model": {"initial_state": "random"}}, "run.json: ModelConfig.initial_state 'random' needs an injection"),
        ({"carry": {"share": 0.5}, "training": {"per_sequence_loops": True}}, "one loop count per batch"),
        ({"penalty": {"persistent": True}}, "draws independent probes"),
        ({"penalty": {"iterations": 4}}, "PenaltyConfig.iterations must be 1 for 'squared_fro'"),
        ({"penalty": {"public_code": True}}, "share 1"),
    ],
)
def test_a_bad_file_gets_one_clear_error(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(ExperimentConfig, values, "run.json")


def test_a_sampler_of_ones_own_is_read_back():
    @dataclass(frozen=True)
    class TwiceLoops(LoopSampler):
        n: int = 2
        support = property(lambda self: np.array([self.n]))

        def pmf(self):
            return np.ones(1)

    config = c.ExperimentConfig(loops=TwiceLoops(3))
    assert from_dict(c.ExperimentConfig, to_dict(config)) == config


def test_what_differs_between_two_configs_is_named_with_both_values():
    mine = from_dict(c.ExperimentConfig, {"seed": 3, "loops": {"kind": "FixedLoops", "n": 5}})
    assert differences(c.ExperimentConfig(), mine) == "loops.n 4 there, 5 here, seed 0 there, 3 here"


@dataclass(frozen=True)
class Containers:
    names: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": "gsm8k"}, "Containers.names must be a list of str, got 'gsm8k'"),
        ({"names": [1]}, "Containers.names must be a list of str"),
        ({"files": None}, "Containers.files must be a mapping of str, got None"),
        ({"files": {"a": 1}}, "Containers.files must be a mapping of str"),
    ],
)
def test_lists_and_mappings_are_checked_as_declared(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Containers, values)

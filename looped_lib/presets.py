"""The experiments of the project, as functions from a preset's name to {run name: ExperimentConfig}.

    smoke   seconds: does everything run?        2 digits, width 16, a few steps
    cpu     minutes on two cores: a real result  3 digits, width 64
    paper   the paper's sizes                    4 digits from data/, width 512, 10,000 steps of 512 problems

A study's variants differ in what the study is about and in nothing else.
"""

from dataclasses import replace
from typing import get_args

from looped_lib.config import (
    CarryConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    NormPlacement,
    NormType,
    PenaltyConfig,
    TrainingConfig,
)
from looped_lib.regularizers import public_code_penalty
from looped_lib.runs import find_root
from looped_lib.samplers import LogNormalLoops, LoopSampler, PoissonLoops, UniformLoops

Configs = dict[str, ExperimentConfig]
PRESETS = ("smoke", "cpu", "paper")


def base(preset: str, seed: int = 0) -> ExperimentConfig:
    """The experiment all studies vary: sandwich_dual at a fixed depth of 4, in the sizes of `preset`."""
    return {"smoke": _smoke, "cpu": _cpu, "paper": _paper}[_one_of("preset", preset, PRESETS)](seed)


def norm_study(preset: str, norm_placement: str = "all", norm_type: str = "LayerNorm", seed: int = 0) -> Configs:
    """Section 4.1: where the norm stands and which it is, trained at depth 4. "all" takes every value that is defined."""
    placements, types = get_args(NormPlacement), get_args(NormType)
    experiment = base(preset, seed)
    configs = {}
    for placement in _choose("norm_placement", norm_placement, placements):
        for kind in _choose("norm_type", norm_type, types):
            if kind == "DeepNorm" and placement != "post_norm" and "all" in (norm_placement, norm_type):
                continue
            model = replace(experiment.model, norm_placement=placement, norm_type=kind)
            configs[f"{placement}-{kind}-seed{seed}"] = replace(experiment, model=model)
    return configs


def random_loop_study(preset: str, variant: str = "all", seed: int = 0) -> Configs:
    """Section 4.2: loop-count distributions, unlooped blocks around the loop, and the L2 penalty, all without Jacobian."""
    experiment = replace(base(preset, seed), loops=_paper_loops(preset))
    changes = {
        "log_normal": {},
        "poisson": {"loops": PoissonLoops(rate=5.0) if preset == "paper" else PoissonLoops(rate=3.0, low=2, high=8)},
        "uniform": {"loops": UniformLoops(low=1, high=16) if preset == "paper" else UniformLoops(low=2, high=5)},
        "prelude": {"model": replace(experiment.model, prelude_layers=1)},
        "coda": {"model": replace(experiment.model, coda_layers=1)},
        "prelude_coda": {"model": replace(experiment.model, prelude_layers=1, coda_layers=1)},
        "l2": {"penalty": PenaltyConfig(l2_weight=0.1, onset=_onset(experiment))},
    }
    chosen = _choose("variant", variant, tuple(changes))
    return {f"{name}-seed{seed}": replace(experiment, **changes[name]) for name in chosen}


def jacobian_study(preset: str, variant: str = "all", seed: int = 0) -> Configs:
    """Section 4.3: random loops alone, and with each Jacobian penalty (w = 0.1, from the onset on)."""
    experiment = replace(base(preset, seed), loops=_paper_loops(preset))
    onset = _onset(experiment)
    on = {"weight": 0.1, "onset": onset}
    changes = {
        "random": {},
        "squared_fro": {"penalty": PenaltyConfig(**on)},
        "spectral_norm": {"penalty": PenaltyConfig(quantity="spectral_norm", iterations=4, **on)},
        "spectral_radius": {"penalty": PenaltyConfig(quantity="spectral_radius", iterations=4, **on)},
        "public_code": {"penalty": replace(public_code_penalty(), onset=onset)},
        "squared_fro_carry": {
            "penalty": PenaltyConfig(**on),
            "carry": CarryConfig(share=0.5, onset=max(onset, experiment.training.steps // 2)),
        },
    }
    chosen = _choose("variant", variant, tuple(changes))
    return {f"{name}-seed{seed}": replace(experiment, **changes[name]) for name in chosen}


def tour(preset: str, seed: int = 0) -> Configs:
    """Three small models that solve three-digit addition at depth 4: fixed depth, random loops, and STARS.

    STARS here is random loops, the Jacobian penalty, and, once the task is learned, batches half of which carry on from deep
    states (see `carry`). runs/LOG.md tells how the numbers were chosen.
    """
    if _one_of("preset", preset, ("smoke", "cpu")) == "smoke":
        experiment, learned = _smoke(seed), 3
    else:
        experiment, learned = _cpu(seed), 700
    random = replace(experiment, loops=UniformLoops(low=2, high=5))
    return {
        "fixed": replace(experiment, model=replace(experiment.model, norm_placement="sandwich_branch")),
        "random": random,
        "stars": replace(
            random,
            penalty=PenaltyConfig(weight=0.01, onset=learned),
            carry=CarryConfig(share=0.5, max_loops=200, onset=learned),
        ),
    }


def _paper(seed: int) -> ExperimentConfig:
    data = find_root() / "data"
    files = {"train_file": f"{data}/train_4digit.jsonl", "test_file": f"{data}/test_4digit.jsonl"}
    return ExperimentConfig(data=DataConfig(**files), seed=seed)


def _cpu(seed: int) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(norm_type="RMSNorm", d_model=64, n_heads=4, d_ff=256, dropout=0.0, max_len=32, init_std=0.1),
        data=DataConfig(digits=3, n_train=60_000, n_test=500),
        training=TrainingConfig(steps=2000, batch_size=128, lr=3e-3, warmup_steps=100, betas=(0.9, 0.95)),
        seed=seed,
    )


def _smoke(seed: int) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(d_model=16, n_heads=2, d_ff=32, max_len=16),
        data=DataConfig(digits=2, n_train=256, n_test=32),
        training=TrainingConfig(steps=6, batch_size=16, lr=1e-3, warmup_steps=2, log_every=2, checkpoint_every=4),
        seed=seed,
    )


def _paper_loops(preset: str) -> LoopSampler:
    """The paper's log-normal; narrower in the small presets, where the wide one learns too slowly."""
    return LogNormalLoops() if preset == "paper" else LogNormalLoops(mu=1.1, sigma=0.3, low=2, high=8)


def _onset(experiment: ExperimentConfig) -> int:
    """First step with a penalty: after the paper's warm-up, but not before half of a short run. Earlier, and the task is never
    learned (see runs/LOG.md)."""
    return max(experiment.training.warmup_steps, min(1000, experiment.training.steps // 2))


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def _choose(name: str, value: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    return choices if value == "all" else (_one_of(name, value, (*choices, "all")),)

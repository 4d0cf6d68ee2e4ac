"""The sizes of every study, and what studies are made of.

smoke   seconds: does everything run?        2 digits, width 16, a few steps
cpu     minutes on two cores: a real result  3 digits, width 64, narrower loop counts than the paper's
narrow  an hour on one core                  4 digits from data/, the paper's loop counts, width 128
paper   the paper's sizes (runs/PAPER.md)    4 digits from data/, width 512, 10,000 steps of 512 problems
"""

from dataclasses import replace

from looped_lib.config import ExperimentConfig, ModelConfig, TrainingConfig
from looped_lib.core.project import find_root
from looped_lib.samplers import LogNormalLoops, LoopSampler, PoissonLoops, UniformLoops
from looped_lib.tasks.addition import Addition

Configs = dict[str, ExperimentConfig]
PRESETS = ("smoke", "cpu", "narrow", "paper")
LEARNED = {"smoke": 0.5, "cpu": 0.35, "narrow": 0.6, "paper": 0.5}
"""Share of the steps after which a model of each size knows the task."""


def base(preset: str, seed: int = 0, digits: int = 0) -> ExperimentConfig:
    """The experiment all studies vary: sandwich_dual at a fixed depth of 4, in the sizes of `preset`.

    With another number of `digits` than the size's own its problems are generated, as many as before, and each digit more
    doubles the steps: with those of three digits four are not always learned (see runs/LOG.md).
    """
    experiment = {"smoke": _smoke, "cpu": _cpu, "narrow": _narrow, "paper": _paper}[one_of("preset", preset, PRESETS)](seed)
    data, training = experiment.data, experiment.training
    if digits in (0, data.digits):
        return experiment
    data = replace(data, digits=digits, train_file="", test_file="")
    steps = training.steps * 2 ** max(0, digits - experiment.data.digits)
    return replace(experiment, data=data, training=replace(training, steps=steps))


def loops(preset: str, distribution: str = "log_normal") -> LoopSampler:
    """The paper's log-normal, Poisson or uniform; narrower in `smoke` and `cpu`, where the wide ones learn too slowly."""
    paper = {
        "log_normal": LogNormalLoops(),
        "poisson": PoissonLoops(rate=5.0),
        "uniform": UniformLoops(low=1, high=100),
    }
    small = {
        "log_normal": LogNormalLoops(mu=1.1, sigma=0.3, low=2, high=8),
        "poisson": PoissonLoops(rate=3.0, low=2, high=8),
        "uniform": UniformLoops(low=2, high=5),
    }
    return (paper if preset in ("narrow", "paper") else small)[one_of("distribution", distribution, tuple(small))]


def comparable_depth(loops: LoopSampler) -> int:
    """The loop count that is as many times the mean of `loops` as 100 is of the paper's distribution (10.6)."""
    return round(100 / LogNormalLoops().mean() * loops.mean())


def onset(preset: str, experiment: ExperimentConfig) -> int:
    """First step with a penalty: after the paper's warm-up, but not before half of a short run, and in `narrow` once the task is
    learned. Earlier, and it is never learned (see runs/LOG.md)."""
    if preset == "narrow":
        return learned(preset, experiment)
    return max(experiment.training.warmup_steps, min(1000, experiment.training.steps // 2))


def learned(preset: str, experiment: ExperimentConfig) -> int:
    """The step by which a model of this size knows the task."""
    return round(LEARNED[preset] * experiment.training.steps)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    """`value`, if it is one of `choices`; ValueError that names the parameter and them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def choose(name: str, value: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    """The one of `choices` that is asked for, or all of them for "all"."""
    return choices if value == "all" else (one_of(name, value, (*choices, "all")),)


def _files() -> Addition:
    data = find_root() / "data"
    return Addition(train_file=f"{data}/train_4digit.jsonl", test_file=f"{data}/test_4digit.jsonl")


def _paper(seed: int) -> ExperimentConfig:
    return ExperimentConfig(
        # Machine epsilon is what torch.nn.RMSNorm takes by itself in float32. DeepNorm's alpha is that of section 4.2.
        model=ModelConfig(final_norm="LayerNorm", rms_eps=2.0**-23, deepnorm_alpha=1.0),
        data=_files(),
        training=TrainingConfig(grad_clip=0.0),
        seed=seed,
    )


def _narrow(seed: int) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(d_model=128, n_heads=8, d_ff=256, init_std=0.05),
        data=_files(),
        training=TrainingConfig(steps=15_000, batch_size=128, lr=1e-3, warmup_steps=200),
        seed=seed,
    )


def _cpu(seed: int) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(norm_type="RMSNorm", d_model=64, n_heads=4, d_ff=256, dropout=0.0, max_len=32, init_std=0.1),
        data=Addition(digits=3, n_train=60_000, n_test=500),
        training=TrainingConfig(steps=2000, batch_size=128, lr=3e-3, warmup_steps=100, betas=(0.9, 0.95)),
        seed=seed,
    )


def _smoke(seed: int) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(d_model=16, n_heads=2, d_ff=32, max_len=16),
        data=Addition(digits=2, n_train=256, n_test=32),
        training=TrainingConfig(steps=6, batch_size=16, lr=1e-3, warmup_steps=2, log_every=2, checkpoint_every=4),
        seed=seed,
    )

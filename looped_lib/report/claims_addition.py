"""What the paper claims of addition (sections 4.1 to 4.3), and how each claim is measured.

Depths: trained at T = 4 (4.1) or at random T (4.2, 4.3), measured to 100. "Grows" means that the mean token norm at 100 loops is
more than twice that at 4, "bounded" that it is less; "holds" that the lowest accuracy at any depth from 4 to 100 is 95 % or more.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import get_args

from looped_lib.config import ExperimentConfig, NormPlacement
from looped_lib.presets import loops_study, norm_study, penalty_study
from looped_lib.report.claims import Claim, Finding, over_seeds, percent
from looped_lib.report.evidence import Evidence, Run
from looped_lib.sizes import Configs

TRAINED, DEEPEST = 4, 100
GROWS = 2.0  # times the norm at the trained depth
HOLDS = 0.95
LEARNED = 0.5  # accuracy at the trained depth, below which a run says nothing about depth
GROWING, BOUNDED = ("pre_norm", "sandwich_branch"), ("post_norm", "sandwich_dual")
TYPES = ("LayerNorm", "RMSNorm", "SimpleNorm")


def only(configs: Configs) -> ExperimentConfig:
    """The one experiment of a study's function."""
    (config,) = configs.values()
    return config


def placements(size: str, names: Sequence[str] = get_args(NormPlacement), norm_type: str = "LayerNorm") -> Configs:
    """Section 4.1 with one norm type, by placement."""
    return {name: only(norm_study(size, name, norm_type)) for name in names}


def distributions(size: str, prelude: int = 0, coda: int = 0, l2: float = 0.0) -> Configs:
    """Section 4.2, by distribution."""
    return {name: only(loops_study(size, name, prelude, coda, l2)) for name in ("log_normal", "poisson", "uniform")}


def growth(run: Run) -> float:
    """Token norm at 100 loops over that at 4."""
    return run.state_norm[DEEPEST] / run.state_norm[TRAINED]


def _grow(evidence: Evidence, size: str) -> Finding | None:
    groups = _found(evidence, placements(size, GROWING))
    return over_seeds(groups, lambda runs: min(map(growth, runs.values())), lambda x: x > GROWS, _say_growth)


def _bounded(evidence: Evidence, size: str) -> Finding | None:
    groups = _found(evidence, placements(size, BOUNDED))
    return over_seeds(groups, lambda runs: max(map(growth, runs.values())), lambda x: x < GROWS, _say_growth)


def _collapse(evidence: Evidence, size: str) -> Finding | None:
    """The most that any growing placement keeps at 100 loops, of its accuracy at the trained depth."""

    def kept(run: Run) -> float:
        return run.accuracy[DEEPEST] / max(run.accuracy[TRAINED], 1e-9)

    def text(name: str, runs: Sequence[Run]) -> str:
        peaks = ", ".join(str(max(run.accuracy, key=run.accuracy.get)) for run in runs)
        return f"{name} {_at(runs, TRAINED)} at 4 loops, {_at(runs, 8)} at 8, {_at(runs, DEEPEST)} at 100 (best at {peaks})"

    groups = _found(evidence, placements(size, GROWING))
    return over_seeds(groups, lambda runs: max(map(kept, runs.values())), lambda x: x < 0.5, text, within=(0, 1))


def _weaker(evidence: Evidence, size: str) -> Finding | None:
    """By how much the best bounded placement is below the worst growing one at the trained depth."""
    groups = _found(evidence, placements(size))

    def gap(runs: dict[str, Run]) -> float:
        at = {name: run.accuracy[TRAINED] for name, run in runs.items()}
        return min(at[name] for name in GROWING) - max(at[name] for name in BOUNDED)

    return over_seeds(groups, gap, lambda x: x > 0, lambda name, runs: f"{name} {_at(runs, TRAINED)} at 4 loops", within=(-1, 1))


def _type_matters_less(evidence: Evidence, size: str) -> Finding | None:
    """Share of placement in the variance of the mean accuracy at 4 to 100 loops that the two main effects explain."""
    configs = {f"{p}, {t}": c for t in TYPES for p, c in placements(size, norm_type=t).items()}

    def share(runs: dict[str, Run]) -> float:
        held = {tuple(name.split(", ")): run.mean(TRAINED, DEEPEST) for name, run in runs.items()}
        mean = sum(held.values()) / len(held)

        def effect(axis: int) -> float:
            levels = {key[axis] for key in held}
            means = [[h for key, h in held.items() if key[axis] == level] for level in levels]
            return sum((sum(m) / len(m) - mean) ** 2 for m in means) / len(levels)

        place, kind = effect(0), effect(1)
        return place / (place + kind) if place + kind else 0.5

    def text(name: str, runs: Sequence[Run]) -> str:
        return f"{name} {percent(run.mean(TRAINED, DEEPEST) for run in runs)}"

    return over_seeds(_found(evidence, configs), share, lambda x: x > 0.8, text, within=(0, 1))


def _unstable(evidence: Evidence, size: str, configs: Configs) -> Finding | None:
    """The highest of the lowest accuracies: one that held would pass the bar. None if no run has learned the task."""
    groups = _found(evidence, configs)
    if not any(run.accuracy[TRAINED] >= LEARNED for runs in groups.values() for run in runs.values()):
        return None
    return over_seeds(groups, lambda runs: max(r.held() for r in runs.values()), lambda x: x < HOLDS, _say_held, within=(0, 1))


def _stars(evidence: Evidence, size: str) -> Finding | None:
    groups = _found(evidence, {"random loops and the penalty": only(penalty_study(size))})
    return over_seeds(groups, lambda runs: min(r.held() for r in runs.values()), lambda x: x >= 0.995, _say_held, within=(0, 1))


def _found(evidence: Evidence, configs: Configs) -> dict[str, Mapping[int, Run]]:
    """Runs by group and seed, of those that were measured deep enough."""
    return {n: {s: r for s, r in evidence.of(c).items() if max(r.accuracy) >= DEEPEST} for n, c in configs.items()}


def _at(runs: Sequence[Run], depth: int) -> str:
    return percent(run.accuracy[depth] for run in runs)


def _say_growth(name: str, runs: Sequence[Run]) -> str:
    return f"{name} × {sum(map(growth, runs)) / len(runs):.2g}"


def _say_held(name: str, runs: Sequence[Run]) -> str:
    never = sum(run.accuracy[TRAINED] < LEARNED for run in runs)
    learned = f" (never learned with {never} of {len(runs)} seeds)" if never else ""
    return f"{name}{learned}: {_at(runs, 8)} at 8 loops, {_at(runs, 16)} at 16, lowest {percent(run.held() for run in runs)}"


def _random(evidence: Evidence, size: str) -> Finding | None:
    return _unstable(evidence, size, distributions(size))


def _unlooped(evidence: Evidence, size: str, **blocks: int) -> Finding | None:
    return _unstable(evidence, size, distributions(size, **blocks))


LOWEST = "highest of the lowest accuracies at 4 to 100 loops; does not hold below 0.95"
CLAIMS = (
    Claim(
        "state_grows",
        "4.1",
        "With pre_norm and sandwich_branch the state grows with every loop.",
        "grows",
        "least growth of the token norm from 4 to 100 loops; grows above 2",
        _grow,
    ),
    Claim(
        "state_bounded",
        "4.1",
        "With post_norm and sandwich_dual the state stays bounded.",
        "bounded",
        "greatest growth of the token norm from 4 to 100 loops; bounded below 2",
        _bounded,
    ),
    Claim(
        "peak_and_collapse",
        "4.1",
        "With pre_norm and sandwich_branch accuracy peaks at the trained depth and collapses.",
        "peaks near T = 4, then collapses",
        "greatest share of the accuracy at 4 loops that is left at 100; collapse below 0.5",
        _collapse,
    ),
    Claim(
        "bounded_weaker",
        "4.1",
        "post_norm and sandwich_dual are weaker than the others at the trained depth.",
        "weaker",
        "accuracy at 4 loops, worst growing placement less best bounded one; weaker above 0",
        _weaker,
    ),
    Claim(
        "type_hardly",
        "4.1",
        "Where the norm stands matters, which norm it is hardly does.",
        "placement matters, type hardly",
        "share of placement in the variance of the mean accuracy at 4 to 100 loops explained by placement and type; above 0.8",
        _type_matters_less,
    ),
    Claim("random_alone", "4.2", "Random loop counts alone do not give stable deep recurrence.", "not stable", LOWEST, _random),
    Claim(
        "prelude_alone",
        "4.2",
        "Nor do random loop counts with an unlooped block before the loop.",
        "not stable",
        LOWEST,
        partial(_unlooped, prelude=1),
    ),
    Claim(
        "coda_alone",
        "4.2",
        "Nor do random loop counts with an unlooped block after the loop.",
        "not stable",
        LOWEST,
        partial(_unlooped, coda=1),
    ),
    Claim(
        "prelude_coda_alone",
        "4.2",
        "Nor do random loop counts with unlooped blocks before and after the loop.",
        "not stable",
        LOWEST,
        partial(_unlooped, prelude=1, coda=1),
    ),
    Claim(
        "l2_alone",
        "4.2",
        "Nor do random loop counts with an L2 penalty on the last loop's change.",
        "not stable",
        LOWEST,
        partial(_unlooped, l2=0.1),
    ),
    Claim(
        "stars",
        "4.3",
        "Random loops with the Jacobian penalty (w = 0.1) are right at every loop count from 4 to 100.",
        "100 % for every T from 4 to 100",
        "lowest accuracy at 4 to 100 loops; holds from 0.995 on",
        _stars,
    ),
)

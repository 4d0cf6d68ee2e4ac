"""What the paper does not ask: which part of the recipe does the work, and what is cheaper.

Most start from random loops (log-normal) as in section 4.2 and change one thing. "Mean" is the mean accuracy over the loop counts
from 4 to 100, "lowest" the lowest accuracy at any loop count from 4 on. FLOPs are those of the whole training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import log10

from looped_lib.config import ExperimentConfig
from looped_lib.report.claims import Claim, Finding, over_seeds, shared
from looped_lib.report.evidence import Evidence
from looped_lib.report.experiments import (
    CUTS,
    RANDOM,
    VJP,
    last,
    random_loops,
    weighted_estimators,
)
from looped_lib.report.flops import overhead, training_flops
from looped_lib.report.measures import DEEPEST, TRAINED, deep, learned, named, percent, where_learned
from looped_lib.report.verdicts import SEEDS, Rule
from looped_lib.runs.folders import Run
from looped_lib.studies.beyond import input_study
from looped_lib.studies.paper import only, penalty_study
from looped_lib.studies.sizes import Configs

NEVER_MOVES = 2 * 1.2e-7  # relative change that float32 does not tell from none


def settling(run: Run) -> float:
    """-log10 of the relative change of the state in loop 100: how far it has come to rest, in decimal digits.

    At most that of NEVER_MOVES; 0 for a state that overflowed.
    """
    residual = run.residual[DEEPEST]
    return -log10(max(1.0 if residual is None else residual, NEVER_MOVES))


def cost(config: ExperimentConfig, size: str) -> float:
    """FLOPs of the training over those of random loops alone."""
    return training_flops(config) / training_flops(random_loops(size))


def _some_estimator(evidence: Evidence, size: str) -> Finding | None:
    """The gain in mean accuracy of the estimator that on average over seeds gains most."""
    configs = weighted_estimators(size)
    groups = deep(evidence, configs)
    extra = {name: overhead(config) for name, config in configs.items() if groups[name]}

    def gain(runs: Mapping[str, Run], name: str) -> float:
        return runs[name].mean(TRAINED, DEEPEST) - runs[RANDOM].mean(TRAINED, DEEPEST)

    best = _best(groups, gain, without=(RANDOM,))

    def text(name: str, runs: Sequence[Run]) -> str:
        more = f", {extra[name]:+.0%} FLOPs" if extra[name] else ""
        return f"{named(name, runs)}: mean {percent(run.mean() for run in runs)}{more}"

    return over_seeds(groups, where_learned(partial(gain, name=best)), lambda x: x > 0, text, Rule.DIFFERENCE, within=(-1, 1))


def _cheapest_rest(evidence: Evidence, size: str) -> Finding | None:
    """Digits of rest gained over random loops per tenth of FLOPs added: one VJP's less those of the best other, each at the
    better of its weights."""
    configs = weighted_estimators(size)
    groups = deep(evidence, configs)
    extra = {name: overhead(config) for name, config in configs.items() if groups[name]}

    def per_flop(runs: Mapping[str, Run], name: str) -> float:
        return (settling(runs[name]) - settling(runs[RANDOM])) / (10 * extra[name])

    ours = [name for name in groups if name.startswith(VJP)]
    mine = _best({name: groups[name] for name in (RANDOM, *ours)}, per_flop, without=(RANDOM,))
    best = _best(groups, per_flop, without=(RANDOM, *ours))

    def text(name: str, runs: Sequence[Run]) -> str:
        rest = sum(map(settling, runs)) / len(runs)
        return f"{named(name, runs)}: {rest:.1f} digits" + (f", {extra[name]:+.0%} FLOPs" if extra[name] else "")

    def number(runs: dict[str, Run]) -> float:
        return per_flop(runs, mine) - per_flop(runs, best)

    return over_seeds(groups, where_learned(number), lambda x: x > 0, text, Rule.DIFFERENCE)


def _best(
    groups: Mapping[str, Mapping[int, Run]], number: Callable[[Mapping[str, Run], str], float], without: Sequence[str]
) -> str:
    """The group with the greatest mean over the seeds that all have; any, if they have none."""
    seeds = shared(groups)
    by_seed = [{name: runs[seed] for name, runs in groups.items()} for seed in seeds]
    return max((name for name in groups if name not in without), key=lambda name: sum(number(runs, name) for runs in by_seed))


def _difference(evidence: Evidence, size: str, pair: Callable[[str], Configs], bar: float = 0.0) -> Finding | None:
    """Mean accuracy of the second of the pair less that of the first. One that never learns, where the first does, is worse."""
    configs = pair(size)
    groups = deep(evidence, configs)
    first, second = groups
    relative = cost(configs[second], size) / cost(configs[first], size) if shared(groups) else 1.0

    def text(name: str, runs: Sequence[Run]) -> str:
        flops = f", {relative:.2f} of the FLOPs" if name == second and abs(relative - 1) >= 0.005 else ""
        return f"{named(name, runs)}: mean {percent(r.mean() for r in runs)}, lowest {percent(r.lowest() for r in runs)}{flops}"

    number = where_learned(lambda runs: runs[second].mean(TRAINED, DEEPEST) - runs[first].mean(TRAINED, DEEPEST))
    finding = over_seeds(groups, number, lambda x: x > bar, text, Rule.DIFFERENCE, within=(-1, 1))
    fails = [learned(groups[first][seed]) and not learned(groups[second][seed]) for seed in shared(groups)]
    return replace(finding, holds=False) if len(fails) >= SEEDS and all(fails) else finding


def _against_random(name: str, make: Callable[[str], ExperimentConfig]) -> Callable[[str], Configs]:
    return lambda size: {"random loops": random_loops(size), name: make(size)}


def _ask(key: str, sentence: str, name: str, make: Callable[[str], ExperimentConfig], bar: float = 0.0) -> Claim:
    number = f"mean accuracy at 4 to 100 loops less that of random loops alone; confirmed if its interval is above {bar:g}"
    return Claim(key, "beyond", sentence, "", number, partial(_difference, pair=_against_random(name, make), bar=bar))


def _injected(kind: str) -> Callable[[str], ExperimentConfig]:
    return lambda size: only(input_study(size, kind))


def _cut(loops: int) -> Callable[[str], ExperimentConfig]:
    return lambda size: only(input_study(size, backprop_loops=loops))


def _from_noise(kind: str) -> Callable[[str], Configs]:
    return lambda size: {f"{kind}, {start}": only(input_study(size, kind, start)) for start in ("embedding", "random")}


CLAIMS = (
    _ask(
        "penalty_adds",
        "Beside random loops the Jacobian penalty (w = 0.1) keeps more accuracy at untrained depths.",
        "with the penalty",
        lambda size: only(penalty_study(size)),
    ),
    _ask(
        "light_penalty_adds",
        "Beside random loops a tenth of the Jacobian penalty (w = 0.01) keeps more accuracy at untrained depths.",
        "with the light penalty",
        lambda size: only(penalty_study(size, weight=0.01)),
    ),
    Claim(
        "estimator",
        "beyond",
        "Some estimator of the penalty (w = 0.1 or 0.01) keeps more accuracy at untrained depths than random loops alone.",
        "",
        "gain in mean accuracy at 4 to 100 loops of the estimator that gains most; confirmed if its interval is above 0",
        _some_estimator,
    ),
    Claim(
        "estimator_rest",
        "beyond",
        "Of the estimators, the squared Frobenius norm by one VJP brings the state to rest, right or wrong, for fewest FLOPs.",
        "",
        "digits of rest at 100 loops gained per 10 % of FLOPs, less the best other's, each at the better of w = 0.1 and 0.01; "
        "confirmed if its interval is above 0",
        _cheapest_rest,
    ),
    _ask(
        "per_sequence",
        "A loop count drawn for each sequence holds better than one for the batch.",
        "a depth per sequence",
        lambda size: only(input_study(size, per_sequence=True)),
    ),
    *(
        _ask(f"truncation_{k}", sentence, last(k), _cut(k), bar=-0.02)
        for k, sentence in zip(
            CUTS,
            (
                "Gradients through the last loop alone are as good as through all.",
                "Gradients through the last two loops are as good as through all.",
                "Gradients through the last four loops are as good as through all.",
            ),
            strict=True,
        )
    ),
    *(
        _ask(f"inject_{kind}", sentence, f"injection {kind}", _injected(kind))
        for kind, sentence in (
            ("add", "Adding the input to the state at every loop holds better than giving it once."),
            ("concat", "Joining input and state by a linear map at every loop (Huginn) holds better than giving the input once."),
            ("diagonal", "A state that decays towards the input at every loop (Parcae) holds better than giving the input once."),
        )
    ),
    *(
        Claim(
            f"noise_{kind}",
            "beyond",
            f"With injection ({kind}), loops that begin at noise hold better than loops that begin at the embedding.",
            "",
            "mean accuracy at 4 to 100 loops from noise less that from the embedding; confirmed if its interval is above 0",
            partial(_difference, pair=_from_noise(kind)),
        )
        for kind in ("add", "concat", "diagonal")
    ),
)

"""What the paper does not ask: which part of the recipe does the work, what is cheaper, and how deep it holds.

All of them start from random loops (log-normal) as in section 4.2 and change one thing. "Mean" is the mean accuracy over the
recorded depths from 4 to 100, "lowest" the lowest accuracy at any depth from 4 on.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import log10

from looped_lib.config import ExperimentConfig
from looped_lib.presets import jacobian_study, penalty_study
from looped_lib.presets_beyond import RECIPES, input_study, recipe_study
from looped_lib.report.claims import Claim, Finding, over_seeds, percent
from looped_lib.report.claims_addition import DEEPEST, TRAINED, only
from looped_lib.report.evidence import Evidence, Run
from looped_lib.report.flops import overhead, step_flops
from looped_lib.sizes import Configs

DEPTHS = 10_000
HOLDS = 0.995
ESTIMATORS = {
    "squared_fro, VJP": {},
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


def estimators(size: str) -> Configs:
    """Random loops alone, and with each estimator of the penalty at w = 0.1."""
    random = {"random loops": random_loops(size)}
    return random | {name: only(penalty_study(size, **settings)) for name, settings in ESTIMATORS.items()}


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
    cut = {f"last {k} loops": only(input_study(size, backprop_loops=k)) for k in (1, 2, 4)}
    return {"all loops": random_loops(size), **cut, "a depth per sequence": only(input_study(size, per_sequence=True))}


def settling(run: Run) -> float:
    """-log10 of the relative change of the state in loop 100: how far it has come to rest, in decimal digits."""
    return -log10(max(run.residual[DEEPEST] or 1e-12, 1e-12))


def _estimator(evidence: Evidence, size: str) -> Finding | None:
    """Digits of rest gained over random loops per tenth of FLOPs added: one VJP's less the best other's."""
    configs = estimators(size)
    extra = {name: overhead(config) for name, config in configs.items() if name != "random loops"}

    def per_flop(runs: dict[str, Run]) -> dict[str, float]:
        return {name: (settling(runs[name]) - settling(runs["random loops"])) / (10 * extra[name]) for name in extra}

    def number(runs: dict[str, Run]) -> float:
        gains = per_flop(runs)
        ours = gains.pop("squared_fro, VJP")
        return ours - max(gains.values())

    def text(name: str, runs: Sequence[Run]) -> str:
        cost = f", {extra[name]:+.0%} FLOPs" if name in extra else ""
        rest = sum(map(settling, runs)) / len(runs)
        return f"{name}: {rest:.1f} digits{cost}, mean accuracy {percent(run.mean() for run in runs)}"

    groups = {name: evidence.of(config) for name, config in configs.items()}
    return over_seeds(groups, number, lambda x: x > 0, text)


def _difference(evidence: Evidence, size: str, pair: Callable[[str], Configs], bar: float = 0.0) -> Finding | None:
    """Mean accuracy of the second of the pair less that of the first."""
    groups = {name: evidence.of(config) for name, config in pair(size).items()}
    first, second = groups
    return over_seeds(
        groups,
        lambda runs: runs[second].mean(TRAINED, DEEPEST) - runs[first].mean(TRAINED, DEEPEST),
        lambda x: x > bar,
        lambda name, runs: (
            f"{name}: mean {percent(r.mean(TRAINED, DEEPEST) for r in runs)}, lowest {percent(r.held() for r in runs)}"
        ),
        within=(-1, 1),
    )


def _recipe(evidence: Evidence, size: str, recipe: str, digits: int = 0) -> Finding | None:
    configs = recipes(size, digits)
    runs = {s: r for s, r in evidence.of(configs[recipe]).items() if max(r.accuracy) >= DEPTHS}

    def text(name: str, found: Sequence[Run]) -> str:
        lowest = ", ".join(f"{100 * run.held(TRAINED, DEPTHS):.1f}" for run in found)
        cost = step_flops(configs[recipe]) / step_flops(configs["random"])
        return f"{name}: lowest {lowest} % by seed; a step costs {cost:.2f} of the FLOPs of random loops"

    return over_seeds({recipe: runs}, lambda r: r[recipe].held(TRAINED, DEPTHS), lambda x: x >= HOLDS, text, within=(0, 1))


def _longer(evidence: Evidence, size: str) -> Finding | None:
    """The best accuracy at any loop count on operands with one digit more than in training."""
    config = recipes(size)["stars_carry"]
    runs = {seed: run for seed, run in evidence.of(config).items() if config.data.digits + 1 in run.digits}

    def best(run: Run, digits: int) -> float:
        return max(run.digits[digits].values())

    def text(name: str, found: Sequence[Run]) -> str:
        parts = [f"{percent(best(run, d) for run in found)} of {d} digits" for d in found[0].digits]
        return f"{name}, at its best loop count: {', '.join(parts)}"

    def number(runs: dict[str, Run]) -> float:
        return best(runs["stars_carry"], config.data.digits + 1)

    return over_seeds({"stars_carry": runs}, number, lambda x: x > 0.5, text, within=(0, 1))


def _against_random(name: str, make: Callable[[str], ExperimentConfig]) -> Callable[[str], Configs]:
    return lambda size: {"random loops": random_loops(size), name: make(size)}


def _ask(key: str, sentence: str, name: str, make: Callable[[str], ExperimentConfig], bar: float = 0.0) -> Claim:
    number = f"mean accuracy at 4 to 100 loops less that of random loops alone; confirmed above {bar:g}"
    return Claim(key, "beyond", sentence, "", number, partial(_difference, pair=_against_random(name, make), bar=bar))


def _injected(kind: str) -> Callable[[str], ExperimentConfig]:
    return lambda size: only(input_study(size, kind))


def _from_noise(kind: str) -> Callable[[str], Configs]:
    return lambda size: {f"{kind}, {start}": only(input_study(size, kind, start)) for start in ("embedding", "random")}


LONGER = "best accuracy at any of 0 to 100 loops on operands of one digit more than in training; solves above 0.5"
LOWEST = "lowest accuracy at 4 to 10,000 loops; holds from 0.995 on"
CLAIMS = (
    _ask(
        "penalty_adds",
        "Beside random loops the Jacobian penalty (w = 0.1) keeps more accuracy at untrained depths.",
        "with the penalty",
        lambda size: only(penalty_study(size)),
    ),
    _ask(
        "light_penalty_adds",
        "So does a tenth of it (w = 0.01).",
        "with the light penalty",
        lambda size: only(penalty_study(size, weight=0.01)),
    ),
    Claim(
        "estimator",
        "beyond",
        "Of the estimators, the squared Frobenius norm by one VJP buys most stability per FLOP.",
        "",
        "digits of rest at 100 loops gained per 10 % of FLOPs, less the best other's; confirmed above 0",
        _estimator,
    ),
    _ask(
        "per_sequence",
        "A loop count drawn for each sequence holds better than one for the batch.",
        "a depth per sequence",
        lambda size: only(input_study(size, per_sequence=True)),
    ),
    _ask(
        "truncation",
        "Gradients through the last two loops alone are as good as through all.",
        "last two loops",
        lambda size: only(input_study(size, backprop_loops=2)),
        bar=-0.02,
    ),
    *(
        _ask(f"inject_{kind}", sentence, f"injection {kind}", _injected(kind))
        for kind, sentence in (
            ("add", "Adding the input to the state at every loop holds better than giving it once."),
            ("concat", "So does joining input and state by a linear map (Huginn)."),
            ("diagonal", "So does a state that decays towards the input (Parcae)."),
        )
    ),
    *(
        Claim(
            f"noise_{kind}",
            "beyond",
            f"With injection ({kind}), loops that begin at noise hold better than loops that begin at the embedding.",
            "",
            "mean accuracy at 4 to 100 loops from noise less that from the embedding; confirmed above 0",
            partial(_difference, pair=_from_noise(kind)),
        )
        for kind in ("add", "concat", "diagonal")
    ),
    *(
        Claim(f"recipe_{recipe}", "beyond", sentence, "", LOWEST, partial(_recipe, recipe=recipe))
        for recipe, sentence in (
            ("stars_carry", "Random loops, the penalty and carried states are right at every loop count from 4 to 10,000."),
            ("carry", "Random loops and carried states suffice: the penalty is not needed."),
            ("inject_carry", "So do random loops and carried states with the input added at every loop."),
            ("inject", "The input added at every loop suffices, without carried states."),
            ("inject_penalty", "So it does with the penalty."),
            ("diagonal_noise", "A state that decays towards the input, from noise, suffices: no carried states, no penalty."),
        )
    ),
    *(
        Claim(f"four_digits_{recipe}", "beyond", sentence, "", LOWEST, partial(_recipe, recipe=recipe, digits=4), sizes=("cpu",))
        for recipe, sentence in (
            (
                "diagonal_noise",
                "On four digits a state that decays towards the input, from noise, is right at 4 to 10,000 loops too.",
            ),
            ("inject_carry", "So are random loops and carried states with the input added at every loop."),
            ("random", "Random loops alone are as good there."),
        )
    ),
    Claim("digits", "beyond", "More loops let a model add numbers with more digits than it was trained on.", "", LONGER, _longer),
)

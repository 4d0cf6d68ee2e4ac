"""Recipes: what is right from 4 to 10,000 loops, at which cost, on four digits too, and on longer numbers than in training.

"Lowest" is the lowest accuracy at any loop count from 4 on. FLOPs are those of the whole training.
"""

from collections.abc import Sequence
from functools import partial

from looped_lib.report.claims import Claim, Finding, over_seeds
from looped_lib.report.claims_beyond import cost
from looped_lib.report.evidence import Evidence
from looped_lib.report.experiments import recipes
from looped_lib.report.flops import training_flops
from looped_lib.report.measures import DEEPEST, TRAINED, named, percent
from looped_lib.report.verdicts import SEEDS, Rule
from looped_lib.runs.folders import Run
from looped_lib.studies.beyond import input_study
from looped_lib.studies.paper import only

DEPTHS = 10_000
HOLDS = 0.995
CHEAP = 1.1


def _recipe(evidence: Evidence, size: str, recipe: str, digits: int = 0) -> Finding | None:
    """The lowest accuracy to 10,000 loops; a run that failed before it was measured as deep has failed."""
    config = recipes(size, digits)[recipe]

    def lowest(run: Run) -> float:
        return run.lowest(TRAINED, min(DEPTHS, max(run.accuracy)))

    def text(name: str, found: Sequence[Run]) -> str:
        by_seed = ", ".join(f"{100 * lowest(run):.1f}" for run in found)
        relative = training_flops(config) / training_flops(only(input_study(size, digits=digits)))
        return f"{named(name, found)}: lowest {by_seed} % by seed; {relative:.2f} of the FLOPs of random loops"

    found = {s: r for s, r in evidence.of(config, DEEPEST).items() if max(r.accuracy) >= DEPTHS or lowest(r) < HOLDS}
    return over_seeds({recipe: found}, lambda runs: lowest(runs[recipe]), lambda x: x >= HOLDS, text, Rule.ALWAYS, within=(0, 1))


def _cheapest(evidence: Evidence, size: str) -> Finding | None:
    """Cost of the cheapest recipe that holds with every one of at least three seeds."""
    configs = recipes(size)
    runs = {name: evidence.of(config, DEPTHS) for name, config in configs.items()}
    judged = {name: list(found.values()) for name, found in runs.items() if len(found) >= SEEDS}
    if not judged:
        return None
    holding = {n: cost(configs[n], size) for n, found in judged.items() if min(r.lowest(TRAINED, DEPTHS) for r in found) >= HOLDS}
    text = "; ".join(
        f"{name} for {relative:.2f} of the FLOPs of random loops"
        for name, relative in sorted(holding.items(), key=lambda item: item[1])
    )
    folders = [run.folder for found in judged.values() for run in found]
    tried = f" (of {len(judged)} recipes with three seeds)"
    if not holding:
        return Finding([], False, "none holds" + tried, folders)
    name = min(holding, key=holding.get)
    return Finding([holding[name]] * len(judged[name]), holding[name] < CHEAP, text + tried, folders)


def _longer(evidence: Evidence, size: str) -> Finding | None:
    """The best accuracy of any recipe at any loop count on operands with one digit more than in training."""
    configs = recipes(size)
    longer = next(iter(configs.values())).data.digits + 1
    found = {n: {s: r for s, r in evidence.of(config).items() if longer in r.digits} for n, config in configs.items()}
    groups = {name: runs for name, runs in found.items() if runs}

    def best(run: Run, digits: int) -> float:
        return max(run.digits[digits].values())

    def text(name: str, runs: Sequence[Run]) -> str:
        parts = [f"{percent(best(run, d) for run in runs)} of {d} digits" for d in runs[0].digits]
        return f"{named(name, runs)}, at its best loop count: {', '.join(parts)}"

    def number(runs: dict[str, Run]) -> float:
        return max(best(run, longer) for run in runs.values())

    return over_seeds(groups, number, lambda x: x > 0.5, text, within=(0, 1))


LONGER = "best accuracy of any recipe at any of 0 to 100 loops on operands of one digit more than in training; solves above 0.5"
LOWEST = "lowest accuracy at 4 to 10,000 loops; holds from 0.995 on with each of three seeds"
CLAIMS = (
    *(
        Claim(f"recipe_{recipe}", "beyond", sentence, "", LOWEST, partial(_recipe, recipe=recipe))
        for recipe, sentence in (
            ("stars_carry", "Random loops, the penalty and carried states are right at every loop count from 4 to 10,000."),
            ("carry", "Random loops and carried states, without a penalty, are right at every loop count from 4 to 10,000."),
            (
                "inject_carry",
                "With the input added at every loop, random loops and carried states are right at 4 to 10,000 loops.",
            ),
            ("inject", "Random loops with the input added at every loop are right at every loop count from 4 to 10,000."),
            (
                "inject_penalty",
                "With the input added at every loop and the penalty, random loops are right at 4 to 10,000 loops.",
            ),
            ("random", "Random loops alone are right at every loop count from 4 to 10,000."),
            (
                "diagonal_noise",
                "From noise, in a state that decays towards the input, random loops are right at 4 to 10,000 loops.",
            ),
        )
    ),
    Claim(
        "cheapest_recipe",
        "beyond",
        "A recipe that is right from 4 to 10,000 loops costs less than a tenth more FLOPs than random loops alone.",
        "",
        "FLOPs of the cheapest recipe that holds with each of three seeds, over those of random loops; confirmed below 1.1",
        _cheapest,
    ),
    *(
        Claim(f"four_digits_{recipe}", "beyond", sentence, "", LOWEST, partial(_recipe, recipe=recipe, digits=4), sizes=("cpu",))
        for recipe, sentence in (
            (
                "diagonal_noise",
                "On four digits, from noise in a state that decays towards the input, random loops are right at 4 to 10,000.",
            ),
            (
                "inject_carry",
                "On four digits, random loops and carried states with the input added are right at 4 to 10,000 loops.",
            ),
            ("random", "On four digits, random loops alone are right at 4 to 10,000 loops."),
        )
    ),
    Claim("digits", "beyond", "More loops let a model add numbers with more digits than it was trained on.", "", LONGER, _longer),
)

"""The experiments beyond the paper, as functions from a preset's name (see `sizes`) to {run name: ExperimentConfig}.

A value that cannot be meant is a ValueError that names the parameter.
"""

from dataclasses import replace
from typing import get_args

from looped_lib.config import CarryConfig, ExperimentConfig, InitialState, InjectionKind, PenaltyConfig
from looped_lib.regularizers import public_code_penalty
from looped_lib.studies.sizes import Configs, base, learned, loops, one_of, onset

RECIPES = ("random", "carry", "stars_carry", "inject", "inject_carry", "inject_penalty", "diagonal_noise")
INGREDIENTS = (
    *("fixed", "stars", "stars_repeats", "stars_unclipped", "stars_early", "stars_late", "stars_half_width"),
    *("stars_double_width", "random_half_width", "random_double_width", "relative_change", "inject_noise"),
)


def beyond_study(
    preset: str,
    recipe: str = "",
    injection: str = "none",
    initial_state: str = "embedding",
    backprop_loops: int = 0,
    per_sequence: bool = False,
    digits: int = 0,
    seed: int = 0,
) -> Configs:
    """One run: that of `recipe_study` if `recipe` is given, else of `input_study`. `digits` 0: as the size has (see `base`)."""
    settings = {
        "injection": injection,
        "initial_state": initial_state,
        "backprop_loops": backprop_loops,
        "per_sequence": per_sequence,
    }
    if not recipe:
        return input_study(preset, **settings, digits=digits, seed=seed)
    if tuple(settings.values()) != ("none", "embedding", 0, False):
        raise ValueError(f"recipe and {', '.join(settings)} are two ways to ask: leave recipe empty or the others as they are")
    return recipe_study(preset, recipe, digits, seed)


def input_study(
    preset: str,
    injection: str = "none",
    initial_state: str = "embedding",
    backprop_loops: int = 0,
    per_sequence: bool = False,
    digits: int = 0,
    seed: int = 0,
) -> Configs:
    """Random loops (log-normal): does the input enter every loop, where do the loops begin, and what do gradients go through?"""
    one_of("injection", injection, get_args(InjectionKind))
    one_of("initial_state", initial_state, get_args(InitialState))
    experiment = replace(base(preset, seed, digits), loops=loops(preset))
    training = replace(experiment.training, backprop_loops=backprop_loops, per_sequence_loops=per_sequence)
    model = replace(experiment.model, injection=injection, initial_state=initial_state)
    parts = [
        injection,
        "random_start" * (initial_state == "random"),
        f"backprop{backprop_loops}" * (backprop_loops > 0),
        "per_sequence" * per_sequence,
        f"{digits}digits" * (digits > 0),
    ]
    return {"-".join(filter(None, [*parts, f"seed{seed}"])): replace(experiment, model=model, training=training)}


def recipe_study(preset: str, recipe: str, digits: int = 0, seed: int = 0) -> Configs:
    """One candidate for the cheapest training that holds the accuracy at every depth (see `recipes`)."""
    one_of("recipe", recipe, (*RECIPES, *INGREDIENTS))
    name = "-".join(filter(None, [recipe, f"{digits}digits" * (digits > 0), f"seed{seed}"]))
    make = recipes if recipe in RECIPES else ingredients
    return {name: make(preset, seed, digits)[recipe]}


def recipes(preset: str, seed: int = 0, digits: int = 0) -> Configs:
    """Candidates for the cheapest training that holds the accuracy at every depth, by their names in RECIPES.

    random            random loops; uniform on 2..5 in the small presets (runs/LOG.md tells how the numbers were chosen)
    carry             and, once the task is learned, batches half of which carry on from deep states (see `carry`)
    stars_carry       and the Jacobian penalty
    inject            random loops, and the input added at every loop
    inject_carry      and carried states
    inject_penalty    random loops, the input added, the Jacobian penalty
    diagonal_noise    random loops (log-normal) from noise, the state decaying towards the input (see `injection`)
    """
    experiment = base(preset, seed, digits)
    random = replace(experiment, loops=loops(preset, "log_normal" if preset in ("narrow", "paper") else "uniform"))
    inject = replace(random, model=replace(random.model, injection="add"))
    begin = learned(preset, experiment)
    carry = CarryConfig(share=0.5, max_loops=200, onset=begin)
    penalty = PenaltyConfig(weight=0.01, onset=begin)
    return {
        "random": random,
        "carry": replace(random, carry=carry),
        "stars_carry": replace(random, carry=carry, penalty=penalty),
        "inject": inject,
        "inject_carry": replace(inject, carry=carry),
        "inject_penalty": replace(inject, penalty=penalty),
        "diagonal_noise": next(iter(input_study(preset, "diagonal", "random", digits=digits, seed=seed).values())),
    }


def ingredients(preset: str, seed: int = 0, digits: int = 0) -> Configs:
    """STARS (random log-normal loops and the public penalty, w = 0.1) and one thing changed, by their names in INGREDIENTS.

    fixed                 always 4 loops, no penalty
    stars                 the penalty from the size's onset on
    stars_repeats         each batch four times in a row
    stars_unclipped       no gradient clipping
    stars_early           the penalty from the first step on
    stars_late            in the last 15 % of the steps only
    stars_half_width      of the model; likewise double, and random: without the penalty
    relative_change       instead of the penalty ||h_T - h_{T-1}||^2 / ||h_T||^2 with weight 1
    inject_noise          no penalty; the input added at every loop, and loops that begin at noise
    """
    fixed = base(preset, seed, digits)
    random = replace(fixed, loops=loops(preset))
    begin, training = onset(preset, random), fixed.training
    stars = replace(random, penalty=replace(public_code_penalty(), onset=begin))
    change = PenaltyConfig(l2_weight=1.0, last_change="relative_squared", onset=begin)

    def wide(experiment: ExperimentConfig, factor: float) -> ExperimentConfig:
        m = experiment.model
        return replace(experiment, model=replace(m, d_model=round(factor * m.d_model), d_ff=round(factor * m.d_ff)))

    return {
        "fixed": fixed,
        "stars": stars,
        "stars_repeats": replace(stars, training=replace(training, batch_repeats=4)),
        "stars_unclipped": replace(stars, training=replace(training, grad_clip=0.0)),
        "stars_early": replace(stars, penalty=replace(stars.penalty, onset=0)),
        "stars_late": replace(stars, penalty=replace(stars.penalty, onset=round(0.85 * training.steps))),
        "stars_half_width": wide(stars, 0.5),
        "stars_double_width": wide(stars, 2),
        "random_half_width": wide(random, 0.5),
        "random_double_width": wide(random, 2),
        "relative_change": replace(random, penalty=change),
        "inject_noise": replace(random, model=replace(random.model, injection="add", initial_state="random")),
    }

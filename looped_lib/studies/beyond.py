"""The experiments beyond the paper, as functions from a preset's name (see `sizes`) to {run name: ExperimentConfig}.

An invalid value is a ValueError that names the parameter or the config's field.
"""

from dataclasses import replace
from typing import Any

from looped_lib.config import CarryConfig, ExperimentConfig, PenaltyConfig
from looped_lib.regularizers import RelativeChange, public_code_penalty
from looped_lib.studies.parameters import changed, run_name, with_values
from looped_lib.studies.sizes import Configs, base, learned, loops, one_of, onset

RECIPES = ("random", "carry", "stars_carry", "inject", "inject_carry", "inject_penalty", "diagonal_noise")
INGREDIENTS = (
    *("fixed", "stars", "stars_repeats", "stars_unclipped", "stars_early", "stars_late", "stars_half_width"),
    *("stars_double_width", "random_half_width", "random_double_width", "relative_change", "inject_noise"),
)


def beyond_study(preset: str, recipe: str = "", digits: int = 0, seed: int = 0, **settings: Any) -> Configs:
    """One run: that of `recipe_study` if `recipe` is given, else of `input_study`. `digits` 0: as the size has (see `base`)."""
    if not recipe:
        return input_study(preset, digits=digits, seed=seed, **settings)
    if given := changed(base(preset), settings):
        raise ValueError(f"recipe and {', '.join(given)} are two ways to ask: leave recipe empty or the others as they are")
    return recipe_study(preset, recipe, digits, seed)


def input_study(
    preset: str, injection: str = "none", initial_state: str = "embedding", digits: int = 0, seed: int = 0, **training: Any
) -> Configs:
    """Random loops (log-normal): does the input enter every loop, where do the loops begin, and what do gradients go through?

    `training` has `backprop_loops` and `per_sequence`.
    """
    settings = {"injection": injection, "initial_state": initial_state, **training}
    experiment = replace(base(preset, seed, digits), loops=loops(preset))
    shown = {"injection": injection} | changed(experiment, settings)
    return {run_name(seed, shown, *_longer(preset, digits)): with_values(experiment, **settings)}


def recipe_study(preset: str, recipe: str, digits: int = 0, seed: int = 0) -> Configs:
    """One candidate for the cheapest training that holds the accuracy at every depth (see `recipes`)."""
    one_of("recipe", recipe, (*RECIPES, *INGREDIENTS))
    make = recipes if recipe in RECIPES else ingredients
    return {run_name(seed, recipe, *_longer(preset, digits)): make(preset, seed, digits)[recipe]}


def _longer(preset: str, digits: int) -> list[str]:
    """What a run's name says of its digits, and of its steps where those are not the size's own."""
    steps = base(preset, digits=digits).training.steps
    return [f"{digits}digits"] * (digits > 0) + [f"{steps}steps"] * (steps != base(preset).training.steps)


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
    inject = with_values(random, injection="add")
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
        "relative_change": replace(random, terms={"change": RelativeChange(weight=1.0, onset=begin)}),
        "inject_noise": with_values(random, injection="add", initial_state="random"),
    }

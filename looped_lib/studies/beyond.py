"""The experiments beyond the paper, as functions from a preset's name (see `sizes`) to {run name: ExperimentConfig}.

A value that cannot be meant is a ValueError that names the parameter.
"""

from dataclasses import replace
from typing import get_args

from looped_lib.config import CarryConfig, InitialState, InjectionKind, PenaltyConfig
from looped_lib.studies.sizes import Configs, base, loops, one_of

RECIPES = ("random", "carry", "stars_carry", "inject", "inject_carry", "inject_penalty", "diagonal_noise")
_LEARNED = {"smoke": 0.5, "cpu": 0.35, "paper": 0.5}  # share of the steps after which a model of each size knows the task


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
    one_of("recipe", recipe, RECIPES)
    name = "-".join(filter(None, [recipe, f"{digits}digits" * (digits > 0), f"seed{seed}"]))
    return {name: recipes(preset, seed, digits)[recipe]}


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
    random = replace(experiment, loops=loops(preset, "log_normal" if preset == "paper" else "uniform"))
    inject = replace(random, model=replace(random.model, injection="add"))
    learned = round(_LEARNED[preset] * experiment.training.steps)
    carry = CarryConfig(share=0.5, max_loops=200, onset=learned)
    penalty = PenaltyConfig(weight=0.01, onset=learned)
    return {
        "random": random,
        "carry": replace(random, carry=carry),
        "stars_carry": replace(random, carry=carry, penalty=penalty),
        "inject": inject,
        "inject_carry": replace(inject, carry=carry),
        "inject_penalty": replace(inject, penalty=penalty),
        "diagonal_noise": next(iter(input_study(preset, "diagonal", "random", digits=digits, seed=seed).values())),
    }

"""Checks of a dataclass's fields: one error that names the field, says what would be right and what was given."""

import math
from typing import Any, get_args


class ConfigError(ValueError):
    """A configuration value that cannot work; the message names the field and says what would be right."""


def fail(config: Any, name: str, right: str) -> None:
    """ConfigError: `name` of `config` must be `right`."""
    raise ConfigError(f"{type(config).__name__}.{name} must be {right}, got {getattr(config, name)!r}")


def choice(config: Any, **choices: Any) -> None:
    """Each field named must be one of the values of its Literal."""
    for name, literal in choices.items():
        if getattr(config, name) not in get_args(literal):
            fail(config, name, "one of " + ", ".join(map(repr, get_args(literal))))


def whole(config: Any, least: int, *names: str) -> None:
    """Each field named must be an int of at least `least`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            fail(config, name, f"a whole number of at least {least}")


def number(config: Any, low: float, high: float, *names: str, open_start: bool = False, open_end: bool = False) -> None:
    """Each field named must be a finite number between `low` and `high`, ends included unless said otherwise."""
    for name in names:
        value = getattr(config, name)
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        fits = fits and (low < value if open_start else low <= value) and (value < high if open_end else value <= high)
        if not fits:
            interval = f"{'(' if open_start else '['}{low}, {high}{')' if open_end or high == math.inf else ']'}"
            fail(config, name, f"a number in {interval}")


def flag(config: Any, *names: str) -> None:
    """Each field named must be True or False."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            fail(config, name, "True or False")


def text(config: Any, *names: str) -> None:
    """Each field named must be a text that is not empty."""
    for name in names:
        if not isinstance(getattr(config, name), str) or not getattr(config, name):
            fail(config, name, "a text that is not empty")

"""Checks of a dataclass's fields: one error that names the field, says what would be right and what was given."""

import math
from typing import Any, get_args

MOST = 2**31 - 1  # of a whole number, unless said otherwise
MOST_SEED = 2**63 - 1
LONGEST_SHOWN = 100  # letters of a value in an error


class ConfigError(ValueError):
    """A configuration value that cannot work; the message names the field and says what would be right."""


def shown(value: Any) -> str:
    """A value as it stands in an error."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def fail(config: Any, name: str, right: str) -> None:
    """ConfigError: `name` of `config` must be `right`."""
    raise ConfigError(f"{type(config).__name__}.{name} must be {right}, got {shown(getattr(config, name))}")


def choice(config: Any, **choices: Any) -> None:
    """Each field named must be one of the values of its Literal."""
    for name, literal in choices.items():
        value = getattr(config, name)
        if not any(type(value) is type(allowed) and value == allowed for allowed in get_args(literal)):
            fail(config, name, "one of " + ", ".join(map(repr, get_args(literal))))


def some_of(config: Any, **choices: Any) -> None:
    """Each field named must be a list with none or some of the values of its Literal."""
    for name, literal in choices.items():
        value = getattr(config, name)
        if not isinstance(value, tuple | list) or not all(each in get_args(literal) for each in value):
            fail(config, name, f"a list with none or some of {', '.join(get_args(literal))}")


def whole(config: Any, least: int, *names: str, most: int = MOST) -> None:
    """Each field named must be an int of at least `least` and at most `most`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            fail(config, name, f"a whole number of at least {least}")
        if value > most:
            fail(config, name, f"a whole number of at most {most}")


def number(config: Any, low: float, high: float, *names: str, open_start: bool = False, open_end: bool = False) -> None:
    """Each field named must be a finite number between `low` and `high`, ends included unless said otherwise."""
    for name in names:
        if not _between(getattr(config, name), low, high, open_start, open_end):
            fail(config, name, f"a number in {_interval(low, high, open_start, open_end)}")


def numbers(config: Any, count: int, low: float, high: float, *names: str, open_end: bool = False) -> None:
    """Each field named must hold `count` finite numbers between `low` and `high`, ends included unless said otherwise."""
    for name in names:
        values = getattr(config, name)
        fits = isinstance(values, tuple | list) and len(values) == count
        if not fits or not all(_between(value, low, high, False, open_end) for value in values):
            fail(config, name, f"{count} numbers in {_interval(low, high, False, open_end)}")


def flag(config: Any, *names: str) -> None:
    """Each field named must be True or False."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            fail(config, name, "True or False")


def text(config: Any, *names: str, empty: bool = False) -> None:
    """Each field named must be a text that a file can hold or be named after; not an empty one, unless `empty` says so."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, str) or not (value or empty):
            fail(config, name, "a text" if empty else "a text that is not empty")
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            fail(config, name, "a text of characters that UTF-8 can write, without NUL")


def _between(value: Any, low: float, high: float, open_start: bool, open_end: bool) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        value = float(value)
    except OverflowError:  # an int above 1e308
        return False
    above, below = low < value if open_start else low <= value, value < high if open_end else value <= high
    return math.isfinite(value) and above and below


def _interval(low: float, high: float, open_start: bool, open_end: bool) -> str:
    return f"{'(' if open_start else '['}{low}, {high}{')' if open_end or high == math.inf else ']'}"

"""Families of parts that a config names by class: loop-count distributions, norms, penalties, tasks, models.

A family is a class directly under `Kind`. A class under a family is one of its kinds as soon as it is defined, by the name of the
class, wherever that is: in this library, in a module of the user's, in a notebook's cell. A config written as JSON holds the name
alone. It is read back where the class is defined; no code is ever loaded from a run folder.
"""

from typing import Any, ClassVar

from looped_lib.core import checks
from looped_lib.core.checks import ConfigError


class Kind:
    """The base of every family. Classes whose names begin with an underscore are not kinds, but what kinds share."""

    kinds: ClassVar[dict[str, type]]
    """The kinds of the family by name."""
    unnamed: ClassVar[str]
    """The kind that JSON without a name means; none if empty."""

    def __init_subclass__(cls, unnamed: str = "", **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if Kind in cls.__bases__:
            cls.kinds, cls.unnamed = {}, unnamed
        elif not cls.__name__.startswith("_"):
            known = cls.kinds.setdefault(cls.__name__, cls)
            if known.__module__ != cls.__module__:  # the same one is a cell that was run again
                raise TypeError(f"{cls.__name__} is already defined in {known.__module__}: give the class another name")
            cls.kinds[cls.__name__] = cls


def choices(family: type[Kind]) -> str:
    """The kinds of a family, as an error lists them."""
    names = ", ".join(map(repr, sorted(family.kinds)))
    return f"one of {names}, or a class of your own whose module is imported first"


def check(config: Any, name: str, family: type[Kind]) -> None:
    """The field `name` of `config` must name a kind of `family`."""
    if not _is_kind(getattr(config, name), family):
        checks.fail(config, name, choices(family))


def kind_of(family: type[Kind], name: Any, where: str) -> type:
    """The kind of `family` by name, None for the one without. ConfigError, opened by `where`, if there is none."""
    name = (family.unnamed or None) if name is None else name
    if not _is_kind(name, family):
        raise ConfigError(f"{where}.kind must be {choices(family)}, got {checks.shown(name)}")
    return family.kinds[name]


def _is_kind(name: Any, family: type[Kind]) -> bool:
    return isinstance(name, str) and name in family.kinds

"""Configs as nested dicts, for JSON, and back: `to_dict`, `from_dict`, and what differs between two configs."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

from looped_lib.core import checks
from looped_lib.core.checks import ConfigError
from looped_lib.core.kinds import Kind, kind_of


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON-ready nested dicts. One of several kinds also gives its class under "kind" (see `kinds`)."""
    named = isinstance(config, Kind) and type(config).__name__ != config.unnamed
    out: dict[str, Any] = {"kind": type(config).__name__} if named else {}
    return out | {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def differences(theirs: Any, mine: Any) -> str:
    """The fields in which two configs differ, with both values; nothing if they are equal."""
    a, b = (_flat(to_dict(config)) for config in (theirs, mine))
    return ", ".join(f"{name} {a.get(name)!r} there, {b.get(name)!r} here" for name in {**a, **b} if a.get(name) != b.get(name))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for name, value in values.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def from_dict(cls: type, values: dict[str, Any], where: str = "", name: str = "") -> Any:
    """The config that `to_dict` wrote. `where` (a file name, say) opens every error message, `name` is the field it is in.

    Raises ConfigError on a field that does not exist and on a wrong value; fields left out take their defaults. A class whose
    fields have changed reads what it wrote before by `upgraded`, from those values to today's.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix}{cls.__name__} must be a mapping of fields, got {checks.shown(values)}")
    values = dict(values)
    if issubclass(cls, Kind):
        cls = kind_of(cls, values.pop("kind", None), prefix + (name or cls.__name__))
    values = cls.upgraded(values) if hasattr(cls, "upgraded") else values
    known = {f.name: f.type for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"{prefix}{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(known)}")
    for field, type_ in known.items():
        if field in values and (dataclasses.is_dataclass(type_)):
            values[field] = from_dict(type_, values[field], where, field)
        elif field in values and get_origin(type_) in (tuple, dict):
            values[field] = _container(cls, field, type_, values[field], where)
        elif field in values and type_ is str and not isinstance(values[field], str):
            raise ConfigError(f"{prefix}{cls.__name__}.{field} must be a text, got {checks.shown(values[field])}")
    try:
        return cls(**values)
    except ValueError as e:
        raise ConfigError(f"{prefix}{e}") from None


def _container(cls: type, field: str, type_: Any, value: Any, where: str) -> tuple[Any, ...] | dict[str, Any]:
    """A list as the tuple, or a mapping, that a field is declared to hold; ConfigError if it is another thing or of others."""
    kind, element = get_origin(type_), next(t for t in reversed(get_args(type_)) if t is not Ellipsis)
    element = str if get_origin(element) is Literal else element  # which texts they may be, the config itself checks
    nested = dataclasses.is_dataclass(element)
    right = f"a {'list' if kind is tuple else 'mapping'} of {getattr(element, '__name__', element)}"
    elements = value.values() if isinstance(value, dict) else value
    fits = isinstance(value, dict if kind is dict else (list, tuple))
    if not fits or not all(_fits(v, dict if nested else element) for v in elements):
        prefix = f"{where}: " if where else ""
        raise ConfigError(f"{prefix}{cls.__name__}.{field} must be {right}, got {checks.shown(value)}")
    if nested and kind is dict:
        return {name: from_dict(element, v, where, f"{field}.{name}") for name, v in value.items()}
    return tuple(value) if kind is tuple else value


def _fits(value: Any, type_: Any) -> bool:
    if type_ is Any:
        return True
    if get_origin(type_) is tuple:  # of any number of values of one type
        return isinstance(value, list | tuple) and all(_fits(x, get_args(type_)[0]) for x in value)
    return isinstance(value, int | float if type_ is float else type_) and not isinstance(value, bool)

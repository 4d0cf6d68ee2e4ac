"""Configs as nested dicts, for JSON, and back: `to_dict`, `from_dict`, and what differs between two configs."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

from looped_lib.core import checks
from looped_lib.core.checks import ConfigError


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON-ready nested dicts. One of several kinds (it has `kinds`, by name) also gives its class under "kind"."""
    out: dict[str, Any] = {"kind": type(config).__name__} if hasattr(config, "kinds") else {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        out[f.name] = to_dict(value) if dataclasses.is_dataclass(value) else list(value) if isinstance(value, tuple) else value
    return out


def differences(theirs: Any, mine: Any) -> str:
    """The fields in which two configs differ, with both values; nothing if they are equal."""
    a, b = (_flat(to_dict(config)) for config in (theirs, mine))
    return ", ".join(f"{name} {a.get(name)!r} there, {b.get(name)!r} here" for name in {**a, **b} if a.get(name) != b.get(name))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for name, value in values.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def from_dict(cls: type, values: dict[str, Any], where: str = "") -> Any:
    """The config that `to_dict` wrote. `where` (a file name, say) opens every error message.

    Raises ConfigError on a field that does not exist and on a wrong value; fields left out take their defaults.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix}{cls.__name__} must be a mapping of fields, got {checks.shown(values)}")
    values = dict(values)
    if (kinds := getattr(cls, "kinds", None)) is not None:
        kind = values.pop("kind", None)
        if not isinstance(kind, str) or kind not in kinds:
            raise ConfigError(f"{prefix}loops.kind must be one of {', '.join(sorted(kinds))}, got {checks.shown(kind)}")
        cls = kinds[kind]
    known = {f.name: f.type for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"{prefix}{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(known)}")
    for name, type_ in known.items():
        if name in values and (dataclasses.is_dataclass(type_)):
            values[name] = from_dict(type_, values[name], where)
        elif name in values and get_origin(type_) in (tuple, dict):
            values[name] = _container(f"{prefix}{cls.__name__}.{name}", type_, values[name])
        elif name in values and type_ is str and not isinstance(values[name], str):
            raise ConfigError(f"{prefix}{cls.__name__}.{name} must be a text, got {checks.shown(values[name])}")
    try:
        return cls(**values)
    except ValueError as e:
        raise ConfigError(f"{prefix}{e}") from None


def _container(where: str, type_: Any, value: Any) -> tuple[Any, ...] | dict[str, Any]:
    """A list as the tuple, or a mapping, that a field is declared to hold; ConfigError if it is another thing or of others."""
    kind, element = get_origin(type_), next(t for t in reversed(get_args(type_)) if t is not Ellipsis)
    element = str if get_origin(element) is Literal else element  # which texts they may be, the config itself checks
    right = f"a {'list' if kind is tuple else 'mapping'} of {getattr(element, '__name__', element)}"
    elements = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict if kind is dict else (list, tuple)) or not all(_fits(v, element) for v in elements):
        raise ConfigError(f"{where} must be {right}, got {checks.shown(value)}")
    return tuple(value) if kind is tuple else value


def _fits(value: Any, type_: Any) -> bool:
    if type_ is Any:
        return True
    if get_origin(type_) is tuple:  # of any number of values of one type
        return isinstance(value, list | tuple) and all(_fits(x, get_args(type_)[0]) for x in value)
    return isinstance(value, int | float if type_ is float else type_) and not isinstance(value, bool)

"""JSON lines, a record each. Every line is looked at, so that what is wrong with one is said with its file and number.

The reader of Arrow would guess the types of all columns from the first lines, stumble over later ones without saying where, and
turn numbers into text. Here only the columns that are asked for are read, and their texts are what Python's `json` says.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from looped_lib.core.checks import ConfigError


class LineError(ValueError):
    """A line that cannot be read; the message names file and line."""


def records(files: tuple[str, ...], columns: Mapping[str, str], dataset: str) -> Iterator[dict[str, Any]]:
    """The `columns` (by the field that names them) of every line that is not blank: texts, or conversations, or None.

    ConfigError at the end if no line had one of them. LineError on a line that is no record of such columns.
    """
    seen: dict[str, None] = {}
    for path in files:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    record = _record(line, columns, f"{path}, line {number}")
                    seen |= dict.fromkeys(record)
                    yield {name: record.get(name) for name in columns.values()}
    for field, name in columns.items():
        if seen and name not in seen:
            raise no_column(field, name, dataset, list(seen))


def no_column(field: str, name: str, dataset: str, there: list[str]) -> ConfigError:
    """The error about a column that is not there."""
    hint = "; or set messages_column to 'messages'" if "messages" in there and field != "messages_column" else ""
    return ConfigError(f"ChatDataConfig.{field} must be a column of {dataset}, which has {', '.join(there)}{hint}, got {name!r}")


def check_value(field: str, name: str, value: Any, where: str) -> None:
    """ValueError if `value` is not what the column `name` may hold: a text, or a list of turns; nothing is always possible."""
    if value is None:
        return
    if field != "messages_column":
        _check_text(value, name, where)
    elif not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise LineError(f"{where}: {name} must be a list of turns, {{role, content}} each, got {_short(value)}")
    else:
        for turn in value:
            for part in ("role", "content"):
                _check_text(turn.get(part), f"{name}: {part}", where)


def _record(line: bytes, columns: Mapping[str, str], where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as e:
        raise LineError(f"{where}: not UTF-8 ({e.reason} at byte {e.start + 1})") from None
    except RecursionError:
        raise LineError(f"{where}: not JSON that can be read (nested too deeply)") from None
    except ValueError as e:
        raise LineError(f"{where}: not JSON ({e})") from None
    if not isinstance(record, dict):
        raise LineError(f"{where}: must be an object with {' and '.join(columns.values())}, got {type(record).__name__}")
    for field, name in columns.items():
        check_value(field, name, record.get(name), where)
    return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return record


def _check_text(value: Any, name: str, where: str) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise LineError(f"{where}: {name} must be a text, got {_short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise LineError(f"{where}: {name} has half a surrogate pair, {value[e.start]!r}, which is no character") from None


def _short(value: Any) -> str:
    return repr(value)[:80]

"""In what the making of a record differs from this project: other versions than the pins, files changed since the commit."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement


def differences(made: Iterable[Mapping[str, Any] | None]) -> list[str]:
    """What differs in the `provenance` of some records, each with the number of records it is true of; none of them: [].

    None stands for a record without provenance. A local version (2.13.0+cpu) is that of its pin (2.13.0).
    """
    records = list(made)
    found = Counter(difference for record in records for difference in _of_one(record))
    return [f"{difference} ({n} of {len(records)} runs)" for difference, n in sorted(found.items())]


def _of_one(record: Mapping[str, Any] | None) -> list[str]:
    if not record:
        return ["versions not recorded"]
    versions = record.get("versions", {})
    others = [f"{name} {versions[name]}" for name, pin in _pins().items() if versions.get(name) and versions[name] not in pin]
    return others + ["files changed since the commit"] * bool(record.get("changed_files"))


@cache
def _pins() -> dict[str, Any]:
    """The versions that the package asks for."""
    wanted = (Requirement(line) for line in metadata.requires("looped_lib") or [])
    return {r.name: r.specifier for r in wanted if r.specifier and r.marker is None}

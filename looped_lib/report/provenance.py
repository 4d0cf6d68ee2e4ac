"""In what the making of a record differs from this project: other versions than the pins, files changed since the commit."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from looped_lib.core.project import checkout


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
    versions = {name: version for name, version in record.get("versions", {}).items() if version and name in _pins()}
    others = [f"{name} {version}" for name, version in versions.items() if version.partition("+")[0] != _pins()[name]]
    return others + ["files changed since the commit"] * bool(record.get("changed_files"))


@cache
def _pins() -> dict[str, str]:
    """The versions of constraints.txt; none where the library is installed apart from the project."""
    root = checkout()
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines() if root else []
    return {name: version for name, _, version in (line.partition("==") for line in lines if "==" in line)}

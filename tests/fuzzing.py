"""Damages good input at random, in its bytes or in its values, reads it, and says what became of it. Five outcomes:

    refused     one line that the commands would print (see `core.errors`)
    accepted    what was read is what the file says, and of the kinds that are declared
    raw         another exception
    wrong       accepted, though the file says something else, or not what is declared
    destroyed   a file was changed or lost

The last three must not be. FUZZ=1000 pytest -k damaged damages each input a thousand times.
"""

import copy
import hashlib
import json
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from looped_lib.core.errors import mendable

TIMES = int(os.environ.get("FUZZ", 20))  # each input is damaged
NASTY = (
    *(None, True, False, 0, 1, -1, 3, 0.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**30, 10**400),
    *("", "x", "0", "true", "../../x", "a\0b", "\ud800", "<img src=x onerror=alert(1)>", "x" * 10_000),
    *([], [0], [[]], ["x"], [None], {}, {"x": 1}, {"": None}),
)


@dataclass
class Input:
    """A kind of input: a good one, how it is read, and whether what was read is what the file says."""

    write: Callable[[Path], Path]
    """Writes a good one into a folder; returns the file to damage."""
    read: Callable[[Path], Any]
    """Reads it, by that file."""
    right: Callable[[Path, Any], bool]
    """Whether what was read of that file is what it says."""


def damaged_bytes(blob: bytes, rng: random.Random) -> bytes:
    at, way = rng.randrange(len(blob) + 1), rng.randrange(6)
    if way == 0:
        return blob[:at]
    if way == 1:
        return blob[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + blob[at:]
    if way == 2:
        return blob[:at] + bytes([rng.randrange(256)]) + blob[at + 1 :]
    if way == 3:
        return blob[:at] + blob[at + rng.randrange(1, 20) :]
    if way == 4:
        return (
            blob[:at]
            + rng.choice([b"[" * 5000, b"9" * 5000, b"\n", b"\xff\xfe", b'"', b"{}", b"null", b"&a ", b"*a"])
            + blob[at:]
        )
    return rng.choice([b"", b"null", b"5", b"[]", b"{}", b'"x"', b"{" * 4000, b"\n\n"])


def places(values: Any, where: tuple = ()) -> list[tuple]:
    """The way to each value within nested mappings and lists."""
    inside = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [p for key, value in inside for p in ((*where, key), *places(value, (*where, key)))]


def damaged_values(values: Any, rng: random.Random) -> Any:
    values = copy.deepcopy(values)
    *way, last = rng.choice(places(values))
    inner = values
    for key in way:
        inner = inner[key]
    match rng.randrange(4):
        case 0:
            del inner[last]
        case 1 if isinstance(inner, dict):
            inner[rng.choice(["x", "", "kind", "seed "])] = rng.choice(NASTY)
        case _:
            inner[last] = rng.choice(NASTY)
    return values


def damage(path: Path, rng: random.Random) -> None:
    """One damage to a file: to its bytes, or, if it is JSON or YAML, to a value."""
    blob, text = path.read_bytes(), path.suffix in (".json", ".yaml", ".jsonl")
    if not text or rng.random() < 0.4:
        path.write_bytes(damaged_bytes(blob, rng))
    elif path.suffix == ".yaml":
        values = damaged_values(yaml.safe_load(blob), rng)
        path.write_text(yaml.safe_dump(values, allow_unicode=False) if "\ud800" not in repr(values) else "about: [", "utf-8")
    elif path.suffix == ".jsonl":
        lines = blob.decode().splitlines()
        i = rng.randrange(len(lines))
        lines[i] = json.dumps(damaged_values(json.loads(lines[i]), rng))
        path.write_text("\n".join(lines) + "\n", "utf-8")
    else:
        path.write_text(json.dumps(damaged_values(json.loads(blob), rng)), "utf-8")


def says_the_same(said: Any, read: Any) -> bool:
    """Whether everything in `said` stands in `read`, of the same kind (a whole number may stand for another number)."""
    if isinstance(said, dict):
        return isinstance(read, dict) and all(k in read and says_the_same(v, read[k]) for k, v in said.items())
    if isinstance(said, list):
        return isinstance(read, list) and len(said) == len(read) and all(map(says_the_same, said, read))
    return said == read and isinstance(said, bool) == isinstance(read, bool)


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def outcome(made: Input, folder: Path, rng: random.Random) -> tuple[str, str]:
    """What became of one damaged input, and what was said."""
    path = made.write(folder)
    whole = path.read_bytes()
    damage(path, rng)
    if path.read_bytes() == whole:
        return "accepted", "not damaged"
    before = digests(folder)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            read = made.read(path)
    except Exception as e:
        line = mendable(e)
        found = ("raw", repr(e)) if line is None or not line or "\n" in line else ("refused", line)
    else:
        left_out = [str(w.message) for w in said if str(w.message).startswith("left out ")]
        if left_out:
            found = "refused", left_out[0]
        else:
            found = ("accepted", "") if made.right(path, read) else ("wrong", repr(path.read_bytes()[:300]))
    return found if digests(folder) == before else ("destroyed", str(folder))


def assert_well_read(name: str, made: Input, folder: Path) -> None:
    """None of so many damaged copies of an input is read in another way than it should be."""
    counts, bad = Counter(), []
    for seed in range(TIMES):
        kind, said = outcome(made, folder, random.Random(f"{name} {seed}"))
        counts[kind] += 1
        if kind not in ("refused", "accepted"):
            bad.append(f"{kind} (seed {seed}): {said[:300]}")
    print(f"{name}: {dict(counts)}")
    assert not bad, "\n".join(bad[:20])
    assert counts["refused"] > TIMES / 10  # the damage is real


def copied(whole: Path, name: str, read: Callable[[Path], Any], right: Callable[[Path, Any], bool]) -> Input:
    """The file `name` of a folder that is copied anew each time."""
    files = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}

    def write(folder: Path) -> Path:
        for place, blob in files.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(blob)
        return folder / name

    return Input(write, read, right)

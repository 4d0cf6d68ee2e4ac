"""JSON files that are never half there."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: str | Path, values: Any) -> None:
    """Write `values` as JSON atomically: a reader sees the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file; ValueError names the file if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: not JSON ({e}); delete it to measure again") from None

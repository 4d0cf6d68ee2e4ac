"""Copy what is small of finished runs into runs/recorded/, which is committed: looped-lib record runs/norms/cpu

Of every finished run below the folder its config, metrics and results, under the same path; no weights, no notebooks. Paths into
the project's folder are cut short, so that a record speaks of no machine.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from looped_lib.core.files import read_json, replacing
from looped_lib.core.project import DONE, RECORDED, find_root

KEPT = ("config.json", "metrics.jsonl", "result.json", "digits.json", DONE)
LARGEST = 10 * 2**20  # bytes of a file


def record(folder: str | Path, root: Path | None = None) -> list[Path]:
    """Record the finished runs (those with sweep.json) below `folder`, which lies in runs/; returns the files written.

    ValueError if the folder is not one of runs/, if a run is of the size smoke, which learns nothing, or if a file is too large
    to be committed; FileNotFoundError if nothing is finished.
    """
    root = root or find_root()
    folder, runs = Path(folder).resolve(), root / "runs"
    if runs not in folder.parents or runs / RECORDED in (folder, *folder.parents):
        raise ValueError(f"{folder} is no study's folder: give one under {runs}, such as runs/norms/cpu")
    finished = [path.parent for path in sorted(folder.rglob(DONE))]
    if not finished:
        raise FileNotFoundError(f"no finished run of a study (with a {DONE}) in {folder}")
    if smoke := [run for run in finished if _size(run) == "smoke"]:
        raise ValueError(f"{smoke[0]} is of the size smoke, which learns nothing: records are of the sizes cpu and paper")
    sources = [path for run in finished for path in sorted(run.rglob("*")) if path.name in KEPT]
    if large := [path for path in sources if path.stat().st_size > LARGEST]:
        size = large[0].stat().st_size
        raise ValueError(f"{large[0]} has {size / 2**20:.0f} MiB: more than {LARGEST / 2**20:.0f} are not recorded")
    written = []
    for source in sources:
        target = runs / RECORDED / source.relative_to(runs)
        with replacing(target) as partial:
            partial.write_text(source.read_text(encoding="utf-8").replace(f"{root}/", ""), encoding="utf-8")
        written.append(target)
    return written


def _size(run: Path) -> Any:
    done = read_json(run / DONE)
    parameters = done.get("parameters") if isinstance(done, dict) else None
    return parameters.get("preset") if isinstance(parameters, dict) else None


def main(arguments: list[str]) -> None:
    """Record, and say how much it was."""
    parser = argparse.ArgumentParser(prog="looped-lib record", description="Copy small results into runs/recorded/")
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args(arguments).folders:
        written = record(folder)
        megabytes = sum(path.stat().st_size for path in written) / 2**20
        print(f"{folder}: {len(written)} files, {megabytes:.1f} MiB, in {os.path.commonpath([path.parent for path in written])}")

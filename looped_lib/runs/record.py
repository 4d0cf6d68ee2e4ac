"""Record what is small of finished runs in runs/recorded/, which is committed: looped-lib record runs/norms/cpu

A record is a folder STUDY/SIZE/RUN with two files: metrics.jsonl, and result.json with all else that is known of the run
(its config, its digits.json, and as `sweep` the parameters of the notebook that made it). No weights, no notebooks. Paths into
the project's folder are cut short, so that a record speaks of no machine.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from looped_lib.core.files import dump_json, parse_json, read_json, replacing
from looped_lib.core.project import DIGITS, DONE, METRICS, RECORDED, RESULT, find_root
from looped_lib.runs.results import kind_of

FOLDED = (DIGITS, "data.json", "depths.json")  # files of a run that become fields of its result, by their names
LARGEST = 10 * 2**20  # bytes of a file


def record(folder: str | Path, root: Path | None = None) -> list[Path]:
    """Record the finished runs (those with sweep.json) below `folder`, which lies in runs/; returns the files written.

    ValueError if the folder is not one of runs/, if a run is of the size smoke, which learns nothing, if two runs would have one
    record, or if a file is too large to be committed; FileNotFoundError if nothing is finished.
    """
    root = root or find_root()
    folder, runs = Path(folder).resolve(), root / "runs"
    if runs not in folder.parents or runs / RECORDED in (folder, *folder.parents):
        raise ValueError(f"{folder} is no study's folder: give one under {runs}, such as runs/norms/cpu")
    finished = [path.parent for path in sorted(folder.rglob(DONE))]
    if not finished:
        raise FileNotFoundError(f"no finished run of a study (with a {DONE}) in {folder}")
    written: dict[Path, str] = {}
    for run in finished:
        for name, source in _records(run):
            target = runs / RECORDED / run.parent.relative_to(runs) / name
            if target / RESULT in written:
                raise ValueError(f"two runs in {folder} would be recorded as {target}: name their folders differently")
            written |= {target / file: text for file, text in record_of(source, root, _sweep(run)).items()}
    for target, text in written.items():
        with replacing(target) as partial:
            partial.write_text(text, encoding="utf-8")
    return list(written)


def record_of(run: Path, root: Path, sweep: Any = None) -> dict[str, str]:
    """{file name: text} of the record of one run. ValueError on a file that is too large to be committed."""
    sources = [run / name for name in (RESULT, METRICS, *FOLDED) if (run / name).exists()]
    for source in sources:
        if (size := source.stat().st_size) > LARGEST:
            raise ValueError(f"{source} has {size / 2**20:.0f} MiB: more than {LARGEST / 2**20:.0f} are not recorded")
    texts = {source.name: source.read_text(encoding="utf-8").replace(f"{root}/", "") for source in sources}
    return folded(texts, run, sweep)


def folded(texts: Mapping[str, str], run: Path, sweep: Any = None) -> dict[str, str]:
    """The files of a run, {name: text}, as the two of its record."""
    files = {name: parse_json(text.encode(), str(run / name)) for name, text in texts.items() if name != METRICS}
    result = {"kind": kind_of(run / RESULT, files[RESULT]), **files[RESULT]}
    result |= {Path(name).stem: files[name] for name in FOLDED if name in files} | ({"sweep": sweep} if sweep else {})
    return {RESULT: dump_json(result)} | {name: text for name, text in texts.items() if name == METRICS}


def _records(run: Path) -> Iterator[tuple[str, Path]]:
    """(name, folder) of what is to be recorded of a run of a study: each of its experiments, and the result of its notebook if
    that says more than they do.

    The only experiment of a run is named by its own folder, several also by what the run varies: `seed0/stars` for seed=0/stars.
    """
    plain = re.sub("[^A-Za-z0-9._-]", "", run.name.replace(",", "-"))
    inner = [path.parent for path in sorted(run.rglob(RESULT)) if path.parent != run]
    if (run / RESULT).exists() and not (inner and kind_of(run / RESULT, read_json(run / RESULT)) in ("experiments", "")):
        yield plain, run
    for folder in inner:
        yield folder.name if len(inner) == 1 else f"{plain}/{folder.name}", folder


def _sweep(run: Path) -> Any:
    """What sweep.json says. ValueError if the run is of the size smoke."""
    done = read_json(run / DONE)
    parameters = done.get("parameters") if isinstance(done, dict) else None
    if isinstance(parameters, dict) and parameters.get("preset") == "smoke":
        raise ValueError(f"{run} is of the size smoke, which learns nothing: records are of the sizes cpu and paper")
    return done


def main(arguments: list[str]) -> None:
    """Record, and say how much it was."""
    parser = argparse.ArgumentParser(prog="looped-lib record", description="Record small results in runs/recorded/")
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args(arguments).folders:
        written = record(folder)
        megabytes = sum(path.stat().st_size for path in written) / 2**20
        print(f"{folder}: {len(written)} files, {megabytes:.1f} MiB, in runs/{RECORDED}")

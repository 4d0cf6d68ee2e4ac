"""Makes room: what can go from the run folders, with its size; and takes it away when told to.

    python -m looped_lib.runs.prune                     list what can go from runs/
    python -m looped_lib.runs.prune runs/norms --delete

What can go:

    checkpoints/ of a finished run that is not the best of its study (config, metrics, result and notebooks stay; to have
        its model again, delete the run's folder and run it anew)
    what a killed process had half written, once an hour old

Never touched: the best run of a study, runs that are not finished (their checkpoints are what they go on from; a run of a sweep
is finished as a whole or not at all), anything under a folder named `recorded`, fine-tuning runs, and every folder in which a
process is at work.

A study is the folder that a run lies in; the runs of a sweep belong to the sweep's folder. Its best run has the greatest
accuracy at the deepest loop count that all of its finished runs were measured at; among equals, the greatest mean accuracy
over the loop counts from 4 on; then the first by name.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from looped_lib.core.files import PARTIAL, Busy, held, holding, read_json
from looped_lib.core.project import DONE, FAILED, LOG, RECORDED, find_root
from looped_lib.core.project import FINETUNE as FINETUNING
from looped_lib.runs.experiment import FIRST_DEPTH

CHECKPOINTS = "checkpoints"
_ABANDONED_SECONDS = 3600  # no write takes as long: what is older has nobody who goes on with it


@dataclass(frozen=True)
class Removable:
    """A file or folder that can go."""

    path: Path
    n_bytes: int
    why: str


@dataclass(frozen=True)
class _Finished:
    folder: Path
    study: Path
    accuracy: dict[int, float]


def removable(folder: str | Path | None = None) -> list[Removable]:
    """What can go from `folder` (default: runs/ of the project), by path. FileNotFoundError if there is no such folder."""
    root = (find_root() / "runs" if folder is None else Path(folder)).resolve()
    if folder is not None and not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    best = {study: _best(study) for study in {run.study for run in _finished(root)}}
    checkpoints = list(_checkpoints(root, best))
    leftovers = _leftovers(root, {item.path for item in checkpoints} | set(best.values()))
    return sorted([*checkpoints, *leftovers], key=lambda item: item.path)


def remove(items: Iterable[Removable]) -> list[Removable]:
    """Delete `items`, each while its run is held; returns those that are gone: not those where a process is or has been at work
    since they were listed, so that they may not go any more."""
    gone = []
    for item in items:
        run = _run_of(item.path)
        try:
            with holding(run, patience=0.0):
                if any(map(held, run.parents)):
                    continue
                if item.path.name == CHECKPOINTS and not any(_spent(r, _best(r.study)) for r in _finished(run)):
                    continue
                _delete(item.path)
        except Busy:
            continue
        gone.append(item)
    return gone


def _delete(path: Path) -> None:
    """A file or folder; what is half deleted when this process is killed is a leftover, not a checkpoint that cannot be read."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith(PARTIAL):
        partial = path.with_name(f"{PARTIAL}{path.name}")
        shutil.rmtree(partial, ignore_errors=True)
        path = path.rename(partial)
    shutil.rmtree(path)


def _checkpoints(root: Path, best: dict[Path, Path]) -> Iterator[Removable]:
    for run in _finished(root):
        path, kept = run.folder / CHECKPOINTS, best[run.study]
        if _spent(run, kept) and not _untouchable(run.folder):
            yield Removable(path, _size(path), f"finished, and not the best of its study: that is {kept.relative_to(run.study)}")


def _spent(run: _Finished, best: Path) -> bool:
    """Whether a run has checkpoints that it has no more use for."""
    path, above = run.folder / CHECKPOINTS, run.folder.parent
    unfinished = not (above / DONE).exists() and any((above / name).exists() for name in (LOG, FAILED))
    return run.folder != best and not unfinished and path.is_dir() and not path.is_symlink()


def _leftovers(root: Path, elsewhere: set[Path]) -> Iterator[Removable]:
    """What `files.replacing` and `files.replacing_folder` had begun, outside the folders `elsewhere`."""
    for path in root.rglob(".*partial*"):
        whole_name = path.name.startswith(PARTIAL) if path.is_dir() else path.name.endswith(".partial")
        if not whole_name or elsewhere & set(path.parents) or _untouchable(_run_of(path)):
            continue
        try:
            if time.time() - max(p.lstat().st_mtime for p in (path, *path.rglob("*"))) > _ABANDONED_SECONDS:
                yield Removable(path, _size(path), "half written by a process that was killed")
        except FileNotFoundError:
            continue  # whole by now


def _finished(root: Path) -> list[_Finished]:
    """The finished runs under `root`: those whose result.json is whole and of the config beside it."""
    runs = []
    for path in sorted(root.rglob("result.json")):
        folder = path.parent
        study = folder.parent.parent if (folder.parent / DONE).exists() else folder.parent
        try:
            result = read_json(path)
            if result["config"] == read_json(folder / "config.json"):
                accuracy = dict(zip(result["depths"], result["accuracy"], strict=True))
                runs.append(_Finished(folder, study, accuracy))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of a whole notebook, or damaged: not a finished run
    return runs


def _best(study: Path) -> Path:
    """The folder of the best run, over all of the study, even if only a part of it is to be pruned."""
    runs = [run for run in _finished(study) if run.study == study]
    common = sorted(set.intersection(*(set(run.accuracy) for run in runs)))
    beyond = [depth for depth in common if depth >= FIRST_DEPTH]
    return max(runs, key=lambda run: [*(run.accuracy[d] for d in common[-1:]), sum(run.accuracy[d] for d in beyond)]).folder


def _untouchable(folder: Path) -> bool:
    above = (folder, *folder.parents)
    return RECORDED in folder.parts or any((path / FINETUNING).exists() or held(path) for path in above)


def _run_of(path: Path) -> Path:
    return path.parent.parent if path.parent.name == CHECKPOINTS else path.parent


def _size(path: Path) -> int:
    return sum(p.lstat().st_size for p in (path, *path.rglob("*")) if not p.is_dir())


def main(argv: list[str] | None = None) -> int:
    """List, and delete if asked to; returns the exit status, 1 if something listed is still there."""
    parser = argparse.ArgumentParser(prog="python -m looped_lib.runs.prune", description="List what can go from the run folders")
    parser.add_argument("folder", nargs="?", type=Path, help="where to look; runs/ of the project if left out")
    parser.add_argument("--delete", action="store_true", help="delete what is listed")
    args = parser.parse_args(argv)
    try:
        items = removable(args.folder)
    except FileNotFoundError as e:
        parser.error(str(e))
    for item in items:
        print(f"{_megabytes(item.n_bytes)}  {item.path}  {item.why}")
    print(f"{_megabytes(sum(item.n_bytes for item in items))}  can go" + ", with --delete" * (bool(items) and not args.delete))
    if not args.delete:
        return 0
    gone = remove(items)
    print(f"{_megabytes(sum(item.n_bytes for item in gone))}  deleted")
    for item in items:
        if item not in gone:
            print(f"left as it is, since a process is or was at work there: {item.path}")
    return int(len(gone) < len(items))


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:10.2f} MB"


if __name__ == "__main__":
    sys.exit(main())

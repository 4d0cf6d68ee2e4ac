"""Whether a finished run is still what its study asks for: what is skipped must not be another experiment."""

from pathlib import Path
from typing import Any

from looped_lib.config import to_dict
from looped_lib.core.files import read_json
from looped_lib.core.project import DONE
from looped_lib.runs.folders import flat, portable, read_config
from looped_lib.studies.study import Parameters, Study, StudyError


def check_finished(study: Study, folder: Path, parameters: Parameters) -> None:
    """StudyError if the run in `folder` is finished, but of another notebook, other parameters or other configs.

    Configs are compared where it is known what the notebook trains (`Study.configs`), with the run of that name or, as names
    have changed, with any other in the folder.
    """
    if not (folder / DONE).exists():
        return
    done = read_json(folder / DONE, f"delete {folder} to run it anew")
    if not isinstance(done, dict) or not isinstance(done.get("parameters"), dict) or "notebook" not in done:
        raise StudyError(f"{folder / DONE} is damaged; delete {folder} to run it anew")
    if done["notebook"] != study.notebook.name:
        raise StudyError(f"{folder} is a finished run of {done['notebook']}, not of {study.notebook.name}: name the study anew")
    _check_same(folder, done["parameters"], parameters)
    for name, config in study.configs(parameters).items():
        try:
            others = [] if (folder / name).exists() else [read_config(path.parent) for path in folder.glob("*/config.json")]
            if portable(config) in map(portable, others):
                continue
            theirs = read_config(folder / name)  # a field younger than the file has its default
        except (FileNotFoundError, ValueError) as e:
            raise StudyError(f"{e}; delete {folder} to run it anew") from None
        _check_same(folder / name, *(flat(to_dict(portable(c))) for c in (theirs, config)))


def _check_same(folder: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    if differ := sorted(k for k in {**theirs, **mine} if theirs.get(k) != mine.get(k)):
        what = ", ".join(f"{k} {theirs.get(k)!r}, now {mine.get(k)!r}" for k in differ)
        raise StudyError(f"{folder} was run with {what}: delete it, or name the study anew")

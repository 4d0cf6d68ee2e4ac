"""Where the project is, and the names of the files in its run folders."""

from pathlib import Path

RECORDED = "recorded"  # the folder under runs/ that is committed
STARTED = "started.json"  # when the newest attempt at a run of a study began, and the seconds of those before
DONE, FAILED = "sweep.json", "failed.json"  # how a run of a study ended
LOG = "sweep.log"  # what the processes of a run said; and those of a sweep that a notebook started, in the study's folder
FINETUNE = "finetune.json"  # the config of a fine-tuning run


def find_root() -> Path:
    """The project's folder: the nearest above the working directory, or else above this file, that holds looped_lib/."""
    here = [Path.cwd(), *Path.cwd().parents, *Path(__file__).resolve().parents]
    for folder in here:
        if (folder / "looped_lib").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise FileNotFoundError("no project folder (looped_lib/ beside pyproject.toml) above the working directory")

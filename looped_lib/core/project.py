"""Where the project is, and the names of the files in its run folders."""

from pathlib import Path

RECORDED = "recorded"  # the folder under runs/ that is committed
STARTED = "started.json"  # when the newest attempt at a run of a study began, and the seconds of those before
DONE, FAILED = "sweep.json", "failed.json"  # how a run of a study ended
LOG = "sweep.log"  # what the processes of a run said; and those of a sweep that a notebook started, in the study's folder
CONFIG, METRICS, RESULT, CHECKPOINTS = "config.json", "metrics.jsonl", "result.json", "checkpoints"
FINETUNE = "finetune.json"  # the config of a fine-tuning run
DIGITS = "digits.json"  # a run's accuracy on other numbers of digits (`runs.digits`)


def checkout() -> Path | None:
    """The project's folder that this library runs from; None where it is installed apart from one (`pip install .`)."""
    folder = Path(__file__).absolute().parents[2]
    return folder if _is_project(folder) else None


def find_root() -> Path:
    """The project's folder: that of this library, or else the nearest above the working directory.

    FileNotFoundError says what to do where there is none: the project's data and notebooks are not installed with the library.
    """
    for folder in filter(None, (checkout(), Path.cwd(), *Path.cwd().parents)):
        if _is_project(folder):
            return folder
    raise FileNotFoundError(
        "this needs the project's own files (data/, notebooks/), which are not installed with the library: work in a checkout of "
        "the project, a folder with looped_lib/ and pyproject.toml"
    )


def runs_folder() -> Path:
    """Where runs go if nothing else is said: runs/ of the project, or of the working directory where there is no project."""
    try:
        return find_root() / "runs"
    except FileNotFoundError:
        return Path.cwd() / "runs"


def _is_project(folder: Path) -> bool:
    return (folder / "looped_lib").is_dir() and (folder / "pyproject.toml").is_file()

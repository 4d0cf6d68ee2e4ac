"""How an evaluation changes a task of lm-eval before it is read: local copies of data, plain text that ends after an answer."""

import glob
from pathlib import Path
from typing import Any

from looped_lib.ouro.evaluate.checks import TASKS
from looped_lib.ouro.evaluate.tasks.grading import first_answers
from looped_lib.tasks.tokenizer import END_OF_TEXT, TURN_END

_SPLITS = ("test_split", "validation_split", "training_split")
_ENDS = {TURN_END, END_OF_TEXT, "</s>"}  # of a turn or a text; no plain text goes on to the next problem by one of these


def local_copy(values: dict[str, Any], copy: Path) -> dict[str, Any]:
    """What to change in the `values` of a task file so that it reads a local copy of its data.

    A folder is a copy of the dataset as the hub has it. A file holds the problems alone; few-shot examples are then chosen among
    the others of them, unless the task brings its own. ValueError if the task names no split.
    """
    if copy.is_dir():
        return {"custom_dataset": None, "dataset_path": str(copy)}
    split = next((values[name] for name in _SPLITS if values.get(name)), None)
    if split is None:
        raise ValueError(f"its file names no split of its data: one of {', '.join(_SPLITS)}")
    brings_examples = bool((values.get("fewshot_config") or {}).get("samples"))
    return {
        "custom_dataset": None,
        "dataset_path": "parquet" if copy.suffix == ".parquet" else "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(copy)}},
        **{"test_split": split, "validation_split": None, "training_split": None},
        "fewshot_split": None if brings_examples else split,  # by the same name lm-eval leaves out the question itself
    }


def without_wildcards(path: Path, links: Path) -> Path:
    """The path, or one in the folder `links` that leads to its files, if it has wildcards in it ([, ? or *)."""
    path = path.resolve()
    if not glob.has_magic(str(path)):
        return path
    link = links / f"{len(list(links.iterdir()))}{path.suffix}"
    for file in filter(Path.is_file, path.rglob("*") if path.is_dir() else [path]):
        place = link / file.relative_to(path)  # each file by itself: a link to a folder would be followed back to its name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file)
    return link


def plain_text(values: dict[str, Any], file: str, fewshot: int) -> dict[str, Any]:
    """What to change in the `values` of a task file whose questions are not put as a chat: a model then writes on and on.

    A task that names no end of an answer but those of a turn or a text stops where its `fewshot` examples are parted. Of this
    package's own the first complete answer is graded (see `first_answer`).
    """
    changed = {}
    if values.get("output_type", "generate_until") == "generate_until":
        asked = dict(values.get("generation_kwargs") or {})
        until = [asked["until"]] if isinstance(asked.get("until"), str) else list(asked.get("until") or [])
        if fewshot and set(until) <= _ENDS:
            parting = values.get("fewshot_delimiter", "\n\n")
            changed["generation_kwargs"] = {**asked, "until": [*until, parting]}
        if Path(file).parent == TASKS:
            steps = [{"function": "custom", "filter_fn": first_answers}, {"function": "take_first"}]
            changed["filter_list"] = [{"name": "none", "filter": steps}]
    return changed

"""The rows that a fine-tuning learns from: read from where they are, checked, and drawn.

    hub         a dataset by name, a `subset` of it (what the hub calls a configuration) and a `split`
    folder      laid out as the hub has it, or written by `save_to_disk`
    file        .jsonl or .parquet

A row holds a question and an answer, or a whole conversation in `messages_column`. It is usable if none of its texts is missing
or blank. Of more usable rows than `max_rows`, so many are drawn by the seed, wherever they stand: files are often sorted.
"""

import glob
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from looped_lib.core import checks, streams
from looped_lib.core.checks import ConfigError
from looped_lib.ouro.finetune.config import ChatDataConfig
from looped_lib.ouro.finetune.lines import LineError, check_value, no_column, records

READERS = {".jsonl": "json", ".parquet": "parquet"}
ON_DISK = ("dataset_dict.json", "dataset_info.json")  # what `save_to_disk` leaves in its folder
_TURNS = List({"role": Value("string"), "content": Value("string")})


@dataclass(frozen=True)
class Drawn:
    """The rows to learn from, and where they come from."""

    dataset: Dataset
    """All of the drawn rows' columns that were read."""
    found: int
    """Rows of the dataset."""
    empty: int
    """Rows of it that are not usable."""
    rule: str
    """How the rows were chosen, in words."""

    @property
    def usable(self) -> int:
        """Rows that could have been drawn."""
        return self.found - self.empty


def load_rows(config: ChatDataConfig, seed: int) -> Drawn:
    """The usable rows of the dataset, at most `max_rows` of them.

    Raises ConfigError on a dataset, subset, split or column that is not there (and says which are), ValueError on a dataset
    without rows, a file that cannot be read, and a wrong line or row.
    """
    rows = _read(config)
    if not len(rows):
        raise ValueError(f"{config.dataset}: no rows that can be read")
    _check_columns(rows, config)
    return draw(rows, config, seed)


def draw(rows: Dataset, config: ChatDataConfig, seed: int) -> Drawn:
    """The usable ones of `rows`, at most `max_rows` of them: those that are left are in no special order."""
    said = rows.select_columns(list(columns(config).values()))
    usable = np.flatnonzero([bool(turns) for batch in said.iter(1000) for turns in conversations(batch, config)])
    if not len(usable):
        raise ValueError(f"{config.dataset}: nothing to learn from: 0 of {len(rows)} rows have all their texts")
    counts = {"found": len(rows), "empty": len(rows) - len(usable)}
    if config.max_rows and len(usable) > config.max_rows:
        drawn = streams.generator(streams.ROWS, seed).permutation(usable)[: config.max_rows]
        return Drawn(rows.select(drawn), **counts, rule=f"{config.max_rows} of the usable rows, drawn by seed {seed}")
    return Drawn(rows if len(usable) == len(rows) else rows.select(usable), **counts, rule="all usable rows")


def conversations(batch: Mapping[str, list[Any]], config: ChatDataConfig) -> list[list[dict[str, str]]]:
    """The turns {role, content} of each row, up to its last answer; none of a row that is not usable."""
    return [_turns(row, config) for row in zip(*(batch[name] for name in columns(config).values()), strict=True)]


def _turns(row: tuple[Any, ...], config: ChatDataConfig) -> list[dict[str, str]]:
    if config.messages_column:
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row[0] or ()]
        while turns and turns[-1]["role"] != "assistant":
            turns.pop()
    else:
        turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), row, strict=True)]
    if not turns or not all(text and text.strip() for turn in turns for text in turn.values()):
        return []
    if turns[0]["role"] == "system" or not config.system_prompt:
        return turns
    return [{"role": "system", "content": config.system_prompt}, *turns]


def columns(config: ChatDataConfig) -> dict[str, str]:
    """The columns that are learned from, by the field that names them."""
    fields = ("messages_column",) if config.messages_column else ("prompt_column", "response_column")
    return {field: getattr(config, field) for field in fields}


def on_hub(config: ChatDataConfig) -> bool:
    """Whether the dataset is nothing on this machine, and has a name that the hub could know."""
    name, source = config.dataset, Path(config.dataset)
    return not (source.exists() or source.suffix in READERS or name.startswith((".", "/", "~")) or name.count("/") > 1)


def _read(config: ChatDataConfig) -> Dataset:
    source = Path(config.dataset)
    if source.is_dir() and any((source / name).is_file() for name in ON_DISK):
        return _saved(source, config)
    if source.is_dir():
        return _folder(source, config)
    if source.is_file():
        return _file(source, config)
    if not on_hub(config):
        checks.fail(config, "dataset", "an existing folder, .jsonl or .parquet file, or a dataset of the hub (owner/name)")
    return _hub(config)


def _saved(folder: Path, config: ChatDataConfig) -> Dataset:
    _refuse_subset(config, "a folder of save_to_disk")
    found = _loading(config, load_from_disk, str(folder))
    return _split(found, config) if isinstance(found, DatasetDict) else found


def _folder(folder: Path, config: ChatDataConfig) -> Dataset:
    try:
        builder = _loading(config, load_dataset_builder, str(folder), config.subset or None)
    except FileNotFoundError:
        checks.fail(config, "dataset", "a folder with .jsonl or .parquet files, or of save_to_disk")
    files = builder.config.data_files or {}
    if config.split not in files:
        checks.fail(config, "split", f"one of the splits of {folder}: {', '.join(map(str, files))}")
    if all(file.endswith(".jsonl") for file in files[config.split]):
        return _lines(list(files[config.split]), config)
    return _loading(config, load_dataset, str(folder), config.subset or None, split=config.split)


def _file(file: Path, config: ChatDataConfig) -> Dataset:
    if file.suffix not in READERS:
        checks.fail(config, "dataset", "a .jsonl or .parquet file")
    _refuse_subset(config, "a file")
    if file.suffix == ".jsonl":
        return _lines([str(file)], config)
    return _loading(config, load_dataset, READERS[file.suffix], data_files=glob.escape(str(file)), split="train")


def _hub(config: ChatDataConfig) -> Dataset:
    try:
        found = _loading(config, load_dataset, config.dataset, config.subset or None)
    except (ConnectionError, DatasetNotFoundError) as e:
        raise ConfigError(
            f"ChatDataConfig.dataset {config.dataset!r} is no file or folder here, and the hub did not give it ({e}). Without "
            "network, copy the dataset's folder to this machine and give its path"
        ) from e
    return _split(found, config)


def _lines(files: list[str], config: ChatDataConfig) -> Dataset:
    """Of the columns that are learned from; cached under a name that follows from the files' contents."""
    named = columns(config)
    digest = hashlib.sha256(repr(named).encode())
    for file in files:
        with open(file, "rb") as contents:
            digest.update(hashlib.file_digest(contents, "sha256").digest())
    return _loading(
        config,
        Dataset.from_generator,
        records,
        features=Features({name: _TURNS if config.messages_column else Value("string") for name in named.values()}),
        gen_kwargs={"files": tuple(files), "columns": named, "dataset": config.dataset},
        fingerprint=digest.hexdigest()[:32],
    )


def _split(found: DatasetDict, config: ChatDataConfig) -> Dataset:
    if config.split not in found:
        checks.fail(config, "split", f"one of the splits of {config.dataset}: {', '.join(found)}")
    return found[config.split]


def _refuse_subset(config: ChatDataConfig, source: str) -> None:
    if config.subset:
        checks.fail(config, "subset", f"empty with {source}, which has none")


def _loading(config: ChatDataConfig, load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `load` gives; its errors, which name neither, with the dataset or the field."""
    try:
        return load(*args, **kwargs)
    except DatasetGenerationError as e:
        if isinstance(e.__cause__, LineError | ConfigError):
            raise e.__cause__ from None
        raise ValueError(f"{config.dataset}: no rows that can be read ({e.__cause__ or e})") from e
    except (ValueError, KeyError, TypeError, StopIteration) as e:  # the last one from a file without a byte
        reason = " ".join(str(e).split())
        if "onfig" in reason and "vailable" in reason:  # "Config name is missing ... the available configs", "BuilderConfig ..."
            raise ConfigError(f"ChatDataConfig.subset {config.subset!r} is none of {config.dataset}: {reason}") from None
        raise ValueError(f"{config.dataset}: no rows that can be read ({reason or 'empty file'})") from e


def _check_columns(rows: Dataset, config: ChatDataConfig) -> None:
    for field, name in columns(config).items():
        if name not in rows.column_names:
            raise no_column(field, name, config.dataset, rows.column_names)
        feature = rows.features[name]
        turns = getattr(feature, "feature", None)
        if field == "messages_column" and not (isinstance(turns, dict) and {"role", "content"} <= set(turns)):
            checks.fail(config, field, f"a column of lists of {{role, content}}, which that of {config.dataset} is not")
        if getattr(feature, "dtype", None) not in ("string", "large_string"):
            for number, value in enumerate(rows[name]):
                check_value(field, name, value, f"{config.dataset}, row {number}")

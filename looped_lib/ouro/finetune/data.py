"""From questions and answers to batches of tokens, with the loss on the answers alone.

    load_rows   a dataset of the hub, a local folder, a .jsonl or .parquet file
    tokenise    rows of tokens and labels, cached on disk; with packing, several conversations to a row
    Collator    padded tensors

A conversation is the prompt (system turn, question, opening of the answer's turn: `prompt_text`, which generation starts from
too) and the rest (the answer and what closes its turn). The two are tokenised apart, so that the model learns to go on from
exactly the tokens it is given when it is asked. Labels are the rest's tokens; IGNORE stands on the prompt and on padding.
"""

import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset

from looped_lib.config import to_dict
from looped_lib.core import checks
from looped_lib.core.checks import ConfigError
from looped_lib.ouro.finetune.config import ChatDataConfig
from looped_lib.tasks.addition import IGNORE

READERS = {".jsonl": "json", ".parquet": "parquet"}
SIZES = ("full_len", "answer_len")  # of each conversation: all its tokens before truncation, those with a label after it


@dataclass(frozen=True)
class TokenReport:
    """What became of the rows; its text is one sentence."""

    rows: int
    """Rows read."""
    kept: int
    """Conversations that are learned."""
    empty: int
    """Rows left out because question or answer is missing or blank."""
    no_answer: int
    """Rows left out because no token of the answer is within max_len."""
    truncated: int
    """Conversations kept that lost their end to max_len."""
    tokens: int
    """Tokens kept."""
    answer_tokens: int
    """Tokens kept that have a label."""

    def __str__(self) -> str:
        return (
            f"{self.kept:,} of {self.rows:,} conversations kept ({self.truncated:,} of them truncated; left out: {self.empty:,} "
            f"with an empty question or answer, {self.no_answer:,} without an answer before the limit): {self.tokens:,} tokens, "
            f"{self.answer_tokens:,} of them learned"
        )


@dataclass(frozen=True)
class TokenisedRows:
    """Rows ready to be collated, and what was left out of them."""

    dataset: Dataset
    """Columns `input_ids` and `labels`, with packing `position_ids` too: lists of one length in each row."""
    report: TokenReport
    """Counts of conversations and tokens."""


@dataclass(frozen=True)
class Collator:
    """Rows of `tokenise` to one batch of tensors (row, token), padded on the right to the longest row.

    `input_ids` and `labels` always, an `attention_mask` if a row is padded (reading one, transformers waits for the device).
    With packing `position_ids` instead, from which transformers tells the conversations apart; padding counts from 0 as one more
    conversation.
    """

    tokenizer: PreTrainedTokenizerBase
    """Gives the padding token."""

    def __post_init__(self):
        if self.tokenizer.pad_token_id is None:
            raise ValueError("Collator.tokenizer must have a padding token: set tokenizer.pad_token")

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """The batch of `rows`, each with the columns of `TokenisedRows.dataset`."""
        lengths = [len(row["input_ids"]) for row in rows]
        gaps = [max(lengths) - n for n in lengths]

        def padded(name: str, filling: int) -> Tensor:
            return torch.tensor([[*row[name], *[filling] * gap] for row, gap in zip(rows, gaps, strict=True)])

        batch = {"input_ids": padded("input_ids", self.tokenizer.pad_token_id), "labels": padded("labels", IGNORE)}
        if "position_ids" in rows[0]:
            batch["position_ids"] = torch.tensor(
                [[*row["position_ids"], *range(gap)] for row, gap in zip(rows, gaps, strict=True)]
            )
        elif any(gaps):
            batch["attention_mask"] = torch.tensor([[1] * n + [0] * gap for n, gap in zip(lengths, gaps, strict=True)])
        return batch


def load_rows(config: ChatDataConfig) -> Dataset:
    """The first `max_rows` rows of the dataset, with all its columns; question and answer are text or missing in each.

    Raises ConfigError on a dataset, split or column that is not there (and says which are), ValueError on a dataset without rows,
    a file that cannot be read, and a wrong line or row.
    """
    source = Path(config.dataset)
    if source.is_dir():
        rows = _load_folder(source, config)
    elif source.is_file():
        rows = _load_file(source, config)
    elif source.suffix in READERS or config.dataset.startswith((".", "/", "~")) or config.dataset.count("/") > 1:
        checks.fail(config, "dataset", "an existing folder, .jsonl or .parquet file, or a dataset of the hub (owner/name)")
    else:
        rows = _load_from_hub(config)
    rows = rows.select(range(min(len(rows), config.max_rows or len(rows))))
    _check_columns(rows, config)
    return rows


def prompt_text(tokenizer: PreTrainedTokenizerBase, problem: str, system_prompt: str) -> str:
    """The conversation up to where the answer begins; an empty `system_prompt` leaves the system turn out."""
    return tokenizer.apply_chat_template(_turns(problem, system_prompt), tokenize=False, add_generation_prompt=True)


def tokenise(rows: Dataset, tokenizer: PreTrainedTokenizerBase, config: ChatDataConfig) -> TokenisedRows:
    """Every row of `load_rows` as tokens and labels, cut to `max_len`; rows without a label left are filtered.

    With packing, each row holds whole conversations, best-fit, at most `max_len` tokens together; `position_ids` count from 0 in
    each. Done once: the result is cached beside the rows' own cache, under a name that follows from the rows, the tokenizer,
    its chat template, the config and this file, so that every process finds it. Raises ValueError if the chat template does not
    open a conversation with its prompt, or if no row is left.
    """
    key = _fingerprint(rows, tokenizer, config)
    columns = ("input_ids", "labels", *(["position_ids"] if config.packing else []))
    number = Value("int32")
    every = rows.map(
        _tokenise_batch,
        batched=True,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer, "config": config},
        remove_columns=rows.column_names,
        features=Features({name: List(number) for name in columns} | {name: number for name in SIZES}),
        new_fingerprint=key,
        desc="Tokenising",
    )
    full, answer = (np.asarray(every.with_format("numpy")[name][:]) for name in SIZES)
    kept = answer > 0
    report = TokenReport(
        rows=len(every),
        kept=int(kept.sum()),
        empty=int((full == 0).sum()),
        no_answer=int(((full > 0) & ~kept).sum()),
        truncated=int((full[kept] > config.max_len).sum()),
        tokens=int(full[kept].clip(max=config.max_len).sum()),
        answer_tokens=int(answer.sum()),
    )
    if not report.kept:
        raise ValueError(f"{config.dataset}: nothing to learn from: {report}")
    dataset = every.select(np.flatnonzero(kept)).remove_columns(list(SIZES))
    if config.packing:
        cache = {"new_fingerprint": f"{key}-packed", "desc": "Packing", "batch_size": 10_000}  # each batch leaves a gap or two
        dataset = pack_dataset(dataset, config.max_len, "bfd", cache).remove_columns("seq_lengths")
    return TokenisedRows(dataset, report)


def _load_folder(folder: Path, config: ChatDataConfig) -> Dataset:
    try:
        files = load_dataset_builder(str(folder)).config.data_files or {}
    except FileNotFoundError:
        checks.fail(config, "dataset", "a folder with .jsonl or .parquet files")
    if config.split not in files:
        checks.fail(config, "split", f"one of the splits of {folder}: {', '.join(map(str, files))}")
    for file in files[config.split]:
        if file.endswith(".jsonl"):
            _check_lines(file, config)
    return _read(config, str(folder), split=config.split)


def _load_file(file: Path, config: ChatDataConfig) -> Dataset:
    if file.suffix not in READERS:
        checks.fail(config, "dataset", "a .jsonl or .parquet file")
    if file.suffix == ".jsonl":
        _check_lines(str(file), config)
    return _read(config, READERS[file.suffix], data_files=glob.escape(str(file)), split="train")


def _load_from_hub(config: ChatDataConfig) -> Dataset:
    try:
        splits = _read(config, config.dataset)
    except (ConnectionError, DatasetNotFoundError) as e:
        raise ConfigError(
            f"ChatDataConfig.dataset {config.dataset!r} is no file or folder here, and the hub did not give it ({e}). Without "
            "network, copy the dataset's folder to this machine and give its path"
        ) from e
    if config.split not in splits:
        checks.fail(config, "split", f"one of the splits of {config.dataset}: {', '.join(splits)}")
    return splits[config.split]


def _read(config: ChatDataConfig, *args: Any, **kwargs: Any) -> Any:
    try:
        return load_dataset(*args, **kwargs)
    except (DatasetGenerationError, ValueError, StopIteration) as e:  # the last one from a file without a byte
        raise ValueError(f"{config.dataset}: no rows that can be read ({str(e.__cause__ or e) or 'empty file'})") from e


def _check_lines(path: str, config: ChatDataConfig) -> None:
    """The reader guesses types from the first lines and turns later numbers into text: every line is looked at before."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as e:
                raise ValueError(f"{where}: not JSON ({e})") from None
            if not isinstance(record, dict):
                raise ValueError(f"{where}: must be an object with {' and '.join(_names(config))}, got {type(record).__name__}")
            for name in _names(config):
                _check_text(record.get(name), name, where)


def _check_columns(rows: Dataset, config: ChatDataConfig) -> None:
    for field, name in zip(("prompt_column", "response_column"), _names(config), strict=True):
        if name not in rows.column_names:
            checks.fail(config, field, f"a column of {config.dataset}, which has {', '.join(rows.column_names)}")
        if getattr(rows.features[name], "dtype", None) not in ("string", "large_string"):
            for number, value in enumerate(rows[name]):
                _check_text(value, name, f"{config.dataset}, row {number}")


def _check_text(value: Any, name: str, where: str) -> None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: {name} must be a text, got {value!r}")


def _names(config: ChatDataConfig) -> tuple[str, str]:
    return config.prompt_column, config.response_column


def _turns(problem: str, system_prompt: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": problem}]


def _fingerprint(rows: Dataset, tokenizer: PreTrainedTokenizerBase, config: ChatDataConfig) -> str:
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    del words["padding"], words["truncation"]  # left behind by the last call
    parts = [rows._fingerprint, words, tokenizer.chat_template, tokenizer.special_tokens_map, to_dict(config)]
    text = json.dumps(parts, sort_keys=True).encode() + Path(__file__).read_bytes()
    return hashlib.sha256(text).hexdigest()[:32]


def _tokenise_batch(
    batch: Mapping[str, list[str | None]], numbers: list[int], tokenizer: PreTrainedTokenizerBase, config: ChatDataConfig
) -> dict[str, list[Any]]:
    pairs = zip(*(batch[name] for name in _names(config)), numbers, strict=True)
    parts = [_parts(*pair, tokenizer, config) for pair in pairs]
    prompts, rests = (_encode(tokenizer, list(texts)) for texts in zip(*parts, strict=True))
    sizes = [(len(prompt), len(prompt) + len(rest)) for prompt, rest in zip(prompts, rests, strict=True)]
    out: dict[str, list[Any]] = {
        "input_ids": [(prompt + rest)[: config.max_len] for prompt, rest in zip(prompts, rests, strict=True)],
        "labels": [([IGNORE] * len(prompt) + rest)[: config.max_len] for prompt, rest in zip(prompts, rests, strict=True)],
        "full_len": [full for _, full in sizes],
        "answer_len": [max(0, min(full, config.max_len) - prompt) for prompt, full in sizes],
    }
    if config.packing:
        out["position_ids"] = [list(range(len(ids))) for ids in out["input_ids"]]
    return out


def _parts(
    question: str | None, answer: str | None, number: int, tokenizer: PreTrainedTokenizerBase, config: ChatDataConfig
) -> tuple[str, str]:
    """The prompt and the rest of a conversation; two empty texts if one is missing."""
    if not (question and question.strip() and answer and answer.strip()):
        return "", ""
    prompt = prompt_text(tokenizer, question, config.system_prompt)
    turns = [*_turns(question, config.system_prompt), {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    if not prompt or not whole.startswith(prompt):
        raise ValueError(
            f"row {number}: the chat template must open the whole conversation with the prompt it renders for generation, "
            f"{prompt!r}, got {whole[: len(prompt)]!r}"
        )
    return prompt, whole[len(prompt) :]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

"""From conversations to batches of tokens, with the loss on the answers alone.

    tokenise    rows of tokens and labels, cached on disk; with packing, several conversations to a row
    Collator    padded tensors

A conversation is written out by the chat template and cut where answers begin and end: what opens an answer is the text that
generation starts from too (`prompt_text`), and what is learned is the answer and what closes its turn. The pieces are tokenised
apart, so that the model learns to go on from exactly the tokens it is given when it is asked. Labels are the tokens of the
answers; IGNORE stands on all others and on padding.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets import config as datasets_config
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset

from looped_lib.config import to_dict
from looped_lib.core import compat
from looped_lib.ouro.finetune import rows as rows_module
from looped_lib.ouro.finetune.config import ChatDataConfig
from looped_lib.ouro.finetune.rows import Drawn, conversations
from looped_lib.tasks.problems import IGNORE

SIZES = ("full_len", "answer_len")  # of each conversation: all its tokens before truncation, those with a label after it


@dataclass(frozen=True)
class TokenReport:
    """What became of the rows; its text is one sentence."""

    found: int
    """Rows of the dataset."""
    empty: int
    """Rows left out because a text of theirs is missing or blank."""
    rule: str
    """How rows were chosen among the others."""
    rows: int
    """Rows chosen."""
    kept: int
    """Conversations that are learned."""
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
            f"{self.kept:,} of {self.found:,} conversations kept ({self.truncated:,} of them truncated; left out: {self.empty:,} "
            f"with an empty question or answer, {self.no_answer:,} without an answer before the limit; {self.rule}): "
            f"{self.tokens:,} tokens, {self.answer_tokens:,} of them learned"
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


def prompt_text(tokenizer: PreTrainedTokenizerBase, problem: str, system_prompt: str) -> str:
    """The conversation up to where the answer begins; an empty `system_prompt` leaves the system turn out."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return _written(tokenizer, [*system, {"role": "user", "content": problem}], add_generation_prompt=True)


def tokenise(drawn: Drawn, tokenizer: PreTrainedTokenizerBase, config: ChatDataConfig) -> TokenisedRows:
    """Every drawn row as tokens and labels, cut to `max_len`; rows without a label left are filtered.

    With packing, each row holds whole conversations, best-fit, at most `max_len` tokens together; `position_ids` count from 0 in
    each. Done once: the result is cached in the cache of `datasets`, under a name that follows from the rows, the tokenizer, its
    chat template, the config and the code, so that every process finds it. Raises ValueError if the chat template cannot write
    a conversation out, or does not open it with its prompt, or if no row is left.
    """
    rows, key = drawn.dataset, _fingerprint(drawn.dataset, tokenizer, config)
    columns = ("input_ids", "labels", *(["position_ids"] if config.packing else []))
    number = Value("int32")
    every = rows.map(
        _tokenise_batch,
        batched=True,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer, "config": config},
        remove_columns=rows.column_names,
        features=Features({name: List(number) for name in columns} | {name: number for name in SIZES}),
        desc="Tokenising",
        **_cached(key),
    )
    full, answer = (np.asarray(every.with_format("numpy")[name][:]) for name in SIZES)
    kept = answer > 0
    report = TokenReport(
        found=drawn.found,
        empty=drawn.empty,
        rule=drawn.rule,
        rows=len(every),
        kept=int(kept.sum()),
        no_answer=int((~kept).sum()),
        truncated=int((full[kept] > config.max_len).sum()),
        tokens=int(full[kept].clip(max=config.max_len).sum()),
        answer_tokens=int(answer.sum()),
    )
    if not report.kept:
        raise ValueError(f"{config.dataset}: nothing to learn from: {report}")
    dataset = every.select(np.flatnonzero(kept)).remove_columns(list(SIZES))
    if config.packing:
        options = {**_cached(f"{key}-packed"), "desc": "Packing", "batch_size": 10_000}  # each batch leaves a gap or two
        dataset = pack_dataset(dataset, config.max_len, "bfd", options).remove_columns("seq_lengths")
    return TokenisedRows(dataset, report)


def _cached(key: str) -> dict[str, str]:
    """Where `map` keeps its result. Left to itself, it would write into a folder of `save_to_disk`."""
    folder = Path(datasets_config.HF_DATASETS_CACHE) / "looped_lib"
    folder.mkdir(parents=True, exist_ok=True)
    return {"new_fingerprint": key, "cache_file_name": str(folder / f"{key}.arrow")}


def _fingerprint(rows: Dataset, tokenizer: PreTrainedTokenizerBase, config: ChatDataConfig) -> str:
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    del words["padding"], words["truncation"]  # left behind by the last call
    parts = [compat.fingerprint(rows), words, tokenizer.chat_template, tokenizer.special_tokens_map, to_dict(config)]
    text = json.dumps(parts, sort_keys=True).encode()
    text += b"".join(Path(module).read_bytes() for module in (__file__, rows_module.__file__))
    return hashlib.sha256(text).hexdigest()[:32]


def _tokenise_batch(
    batch: Mapping[str, list[Any]], numbers: list[int], tokenizer: PreTrainedTokenizerBase, config: ChatDataConfig
) -> dict[str, list[Any]]:
    written = [_pieces(turns, n, tokenizer) for turns, n in zip(conversations(batch, config), numbers, strict=True)]
    tokens = iter(_encode(tokenizer, [text for pieces in written for text in pieces]))
    out: dict[str, list[Any]] = {"input_ids": [], "labels": [], "full_len": [], "answer_len": []}
    for pieces in written:
        ids: list[int] = []
        labels: list[int] = []
        for i in range(len(pieces)):  # what is given and what is learned take turns
            piece = next(tokens)
            ids += piece
            labels += piece if i % 2 else [IGNORE] * len(piece)
        out["full_len"].append(len(ids))
        out["input_ids"].append(ids[: config.max_len])
        out["labels"].append(labels[: config.max_len])
        out["answer_len"].append(sum(label != IGNORE for label in labels[: config.max_len]))
    if config.packing:
        out["position_ids"] = [list(range(len(ids))) for ids in out["input_ids"]]
    return out


def _pieces(turns: list[dict[str, str]], number: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A conversation in pieces: what comes before an answer, the answer, what comes before the next one, ..."""
    pieces: list[str] = []
    try:
        for end in (i for i, turn in enumerate(turns) if turn["role"] == "assistant"):
            for text in (
                _written(tokenizer, turns[:end], add_generation_prompt=True),
                _written(tokenizer, turns[: end + 1], add_generation_prompt=False),
            ):
                before = "".join(pieces)
                if not text.startswith(before) or text == before:
                    raise ValueError(
                        "the chat template must open the whole conversation with the prompt it renders for generation, "
                        f"{before!r}, got {text[: len(before)]!r}"
                    )
                pieces.append(text[len(before) :])
    except ValueError as e:
        raise ValueError(f"row {number}: {e}") from None
    return pieces


def _written(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """A conversation as the chat template writes it. ValueError if it cannot: a template is a program, and may be damaged."""
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as e:
        reason = " ".join(f"{type(e).__name__}: {e}".split())
        raise ValueError(f"the chat template of {tokenizer.name_or_path} cannot write a conversation ({reason})") from None


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

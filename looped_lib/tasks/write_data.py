"""Write the files of data/ anew: the same bytes on every machine.

looped-lib data [FOLDER]          (default: data/ of the project)
"""

import argparse
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from looped_lib.core.files import write_jsonl
from looped_lib.core.project import runs_folder
from looped_lib.tasks.addition import generate_operands, save_jsonl
from looped_lib.tasks.tokenizer import train_tokenizer
from looped_lib.tasks.word_problems import generate

DIGITS, SEED = 4, 74
ADDITION = {"train_4digit.jsonl": 95_000, "test_4digit.jsonl": 5_000}
WORD_PROBLEMS = {"word_problems/train.jsonl": 20_000, "word_problems/test.jsonl": 500}
TOKENIZER = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer/chat_template.jinja")


def make_data(folder: str | Path) -> dict[str, str]:
    """Write all files into `folder`; returns their SHA-256. Train and test are two parts of one list of different problems."""
    folder = Path(folder)
    for name, n, skip in _parts(ADDITION):
        save_jsonl(folder / name, *generate_operands(DIGITS, n, SEED, skip))
    for name, n, skip in _parts(WORD_PROBLEMS):
        write_jsonl(folder / name, generate(n, SEED, skip))
    train_tokenizer(generate(WORD_PROBLEMS["word_problems/train.jsonl"], SEED)).save_pretrained(folder / "tokenizer")
    files = (*ADDITION, *WORD_PROBLEMS, *TOKENIZER)
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}


def _parts(sizes: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
    start = 0
    for name, n in sizes.items():
        yield name, n, start
        start += n


def main(arguments: list[str]) -> None:
    """Write the files and print their checksums."""
    parser = argparse.ArgumentParser(prog="looped-lib data", description=make_data.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=runs_folder().parent / "data")
    for name, sha256 in make_data(parser.parse_args(arguments).folder).items():
        print(f"{sha256}  {name}")

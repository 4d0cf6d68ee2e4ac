"""Write the four-digit addition problems of data/ anew: the same bytes on every machine.

python -m looped_lib.make_data [FOLDER]          (default: data/ of the project)
"""

import argparse
import hashlib
from pathlib import Path

from looped_lib.addition import generate_operands, save_jsonl
from looped_lib.runs import find_root

DIGITS, SEED = 4, 74
SIZES = {"train_4digit.jsonl": 95_000, "test_4digit.jsonl": 5_000}


def make_data(folder: str | Path) -> dict[str, str]:
    """Write both files into `folder`; returns their SHA-256. One list of different problems is cut in two."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sums, start = {}, 0
    for name, n in SIZES.items():
        save_jsonl(folder / name, *generate_operands(DIGITS, n, SEED, skip=start))
        sums[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        start += n
    return sums


def main() -> None:
    """Write the files and print their checksums."""
    parser = argparse.ArgumentParser(description=make_data.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=find_root() / "data")
    for name, sha256 in make_data(parser.parse_args().folder).items():
        print(f"{sha256}  {name}")


if __name__ == "__main__":
    main()

"""data/: the committed files are what the command writes, have the stated checksums and sizes, and share no problem."""

import hashlib

from looped_lib.addition import load_jsonl
from looped_lib.make_data import SIZES, make_data
from looped_lib.runs import find_root

DATA = find_root() / "data"


def test_files_are_reproduced_byte_for_byte_and_match_the_readme(tmp_path):
    readme = (DATA / "README.md").read_text()
    for name, sha256 in make_data(tmp_path).items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == sha256
        assert f"`{name}` | {SIZES[name]:,} | `{sha256}`" in readme


def test_sizes_and_disjointness():
    train, test = (load_jsonl(DATA / name) for name in SIZES)
    assert len(train) >= 90_000 and len(test) == 5_000
    prompts = [{t.split("=")[0] for t in p.texts()} for p in (train, test)]
    assert len(prompts[0]) == len(train) and len(prompts[1]) == 5_000 and not prompts[0] & prompts[1]
    assert all(len(p) == 9 for p in prompts[1])

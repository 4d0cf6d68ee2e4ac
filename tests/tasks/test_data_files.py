"""data/: the committed files are what the command writes, have the stated checksums and sizes, and share no problem."""

import hashlib
import json
import re

from looped_lib.core.project import find_root
from looped_lib.tasks.addition import load_jsonl
from looped_lib.tasks.write_data import ADDITION, WORD_PROBLEMS, make_data

DATA = find_root() / "data"
README = (DATA / "README.md").read_text()


def test_files_are_reproduced_byte_for_byte_and_match_the_readme(tmp_path):
    sums = make_data(tmp_path)
    for name, sha256 in sums.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == sha256
        assert re.search(rf"^\| `{re.escape(name)}` \| .* \| `{sha256}` \|$", README, re.M)
    committed = {str(path.relative_to(DATA)) for path in DATA.rglob("*") if path.is_file()}
    assert committed == {*sums, "README.md"}


def test_sizes_are_those_of_the_readme():
    for name, n in (ADDITION | WORD_PROBLEMS).items():
        assert len((DATA / name).read_text().splitlines()) == n
        assert f"`{name}` | {n:,} | `" in README


def test_addition_problems_are_disjoint():
    train, test = (load_jsonl(DATA / name) for name in ADDITION)
    assert len(train) >= 90_000 and len(test) == 5_000
    prompts = [{t.split("=")[0] for t in p.texts()} for p in (train, test)]
    assert len(prompts[0]) == len(train) and len(prompts[1]) == 5_000 and not prompts[0] & prompts[1]
    assert all(len(p) == 9 for p in prompts[1])


def test_word_problems_are_disjoint_and_have_numinamaths_columns():
    train, test = ([json.loads(line) for line in (DATA / name).read_text().splitlines()] for name in WORD_PROBLEMS)
    assert all(list(row) == ["problem", "solution", "answer"] for row in train + test)
    problems = [{row["problem"] for row in rows} for rows in (train, test)]
    assert len(problems[0]) == len(train) and len(problems[1]) == len(test) and not problems[0] & problems[1]

"""Addition problems: right sums, deterministic and disjoint sets, strict files, exact labels and grading."""

import json

import numpy as np
import pytest
import torch

from looped_lib.tasks import addition
from looped_lib.tasks.addition import CHARACTERS, EOS, PAD, generate_operands, generate_problems, load_jsonl
from looped_lib.tasks.problems import IGNORE, encode, exact_match, from_texts

GOOD = {"num1": 1234, "num2": 5678, "sum": 6912, "expression": "1234 + 5678", "answer": 6912}


@pytest.mark.parametrize("digits", [1, 2, 3, 4, 9, 20])
def test_sums_are_right_for_any_number_of_digits(digits):
    for text in generate_problems(digits, 50, seed=1).texts():
        question, answer = text.split("= ")
        a, b = question.split("+")
        assert len(a) == len(b) == digits and "0" not in (a[0], b[0])
        assert answer == str(int(a) + int(b))[::-1] + "§"


def test_a_seed_is_one_list_of_different_problems():
    whole = generate_problems(2, 8100, seed=3).texts()  # every two-digit problem there is
    assert len(set(whole)) == 8100
    assert generate_problems(2, 100, seed=3, skip=50).texts() == whole[50:150]
    assert generate_problems(2, 8100, seed=4).texts() != whole
    with pytest.raises(ValueError, match="8100 problems of 2 digits, fewer than 8101"):
        generate_problems(2, 8101, seed=3)


def test_files_and_operands_give_the_same_tensors(tmp_path):
    a, b = generate_operands(4, 300, seed=2)
    addition.save_jsonl(tmp_path / "x.jsonl", a, b)
    loaded, made = load_jsonl(tmp_path / "x.jsonl"), addition.from_digits(a, b)
    assert torch.equal(loaded.ids, made.ids) and torch.equal(loaded.prompt_len, made.prompt_len)
    assert len(load_jsonl(tmp_path / "x.jsonl", limit=7)) == 7
    record = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])
    assert list(record) == list(GOOD) and record["answer"] == record["num1"] + record["num2"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (json.dumps(GOOD)[:30], "not JSON"),
        ("[1, 2]", "must be an object"),
        (json.dumps({**GOOD, "answer": 6913}), "answer is 6913, but 1234 \\+ 5678 = 6912"),
        (json.dumps({**GOOD, "sum": 1}), "sum is 1, but"),
        (json.dumps({**GOOD, "num1": -1}), "num1 must be a whole number of at least 0 and 1000 digits at most, got -1"),
        (json.dumps({**GOOD, "num1": 10**1000}), "num1 must be a whole number .* 1000 digits at most, got 1000"),
        ("[" * 100_000, "not JSON .nested too deeply"),
        ('{"num1": ' + "9" * 5000 + "}", "not JSON .Exceeds the limit"),
        ('{"num1": 1, "num1": 2}', "not JSON .'num1' is there twice: give it once"),
        (json.dumps({**GOOD, "num2": "5678"}), "num2 must be a whole number"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "num2"}), "num2 must be .* got None"),
        (json.dumps({**GOOD, "expression": "1234 - 5678"}), "expression '1234 - 5678' is not 1234 \\+ 5678"),
    ],
)
def test_a_bad_line_names_file_line_and_reason(tmp_path, line, reason):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(ValueError, match=f"bad.jsonl, line 3: {reason}"):
        load_jsonl(path)


def test_a_line_that_is_not_utf_8_names_file_and_line(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\xff\n")
    with pytest.raises(ValueError, match="x.jsonl, line 2: must be UTF-8, but byte 0 is 0xff"):
        load_jsonl(tmp_path / "x.jsonl")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no problems"):
        load_jsonl(tmp_path / "empty.jsonl")


def test_labels_are_the_answer_and_eos_also_with_mixed_lengths():
    problems = from_texts([("5+6=", " 11"), ("1234+9999=", " 33211")], CHARACTERS)
    for ids, labels, prompt in zip(problems.inputs, problems.labels, ("5+6=", "1234+9999="), strict=True):
        counted = labels != IGNORE
        assert counted.nonzero()[0].item() == len(prompt) - 1  # `=` predicts the space
        said = "".join(CHARACTERS[i] for i in labels[counted])
        assert said == {"5+6=": " 11§", "1234+9999=": " 33211§"}[prompt]
        assert not (counted & (ids == PAD)).any()


def test_grading():
    problems = from_texts([("5+6=", " 11")] * 5, CHARACTERS)
    right = problems.ids[0]
    rows = right.repeat(5, 1)
    rows[1, 5] = 2  # a wrong digit
    rows[2, 6] = 9  # a wrong last digit
    rows[3, -1] = 0  # no EOS
    rows = torch.cat([rows, torch.tensor([[PAD]] * 4 + [[7]])], dim=1)  # row 4: something after EOS
    assert right[-1] == EOS and exact_match(rows, problems).tolist() == [True, False, False, False, True]
    with pytest.raises(ValueError, match="grading needs 8"):
        exact_match(rows[:, :5], problems)


def test_an_unknown_character_is_named():
    with pytest.raises(ValueError, match="character 'x' at 1"):
        encode("1x2=", CHARACTERS)


def test_digits_are_uniform():
    a, _ = generate_operands(3, 30_000, seed=0)
    assert np.bincount(a[:, 0], minlength=10)[0] == 0
    assert np.abs(np.bincount(a[:, 1]) / len(a) - 0.1).max() < 0.01

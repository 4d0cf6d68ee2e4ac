"""The small ChatML tokenizer: the same from the same rows, lossless, digits one by one, short."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from looped_lib.core.project import find_root
from looped_lib.tasks.tokenizer import SPECIAL, VOCAB_SIZE, train_tokenizer
from looped_lib.tasks.word_problems import generate

TOKENIZER = AutoTokenizer.from_pretrained(find_root() / "data" / "tokenizer")
texts = st.text().filter(lambda text: not any(word in text for word in SPECIAL))


def test_equal_rows_give_equal_files(tmp_path):
    for name in "ab":
        train_tokenizer(generate(2000, seed=1)).save_pretrained(tmp_path / name)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab"]
    assert files[0] == files[1] and len(files[0]) == 3


def test_the_committed_one_has_ouros_special_tokens():
    assert len(TOKENIZER) == VOCAB_SIZE == 512
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2]
    assert TOKENIZER.bos_token_id == TOKENIZER.eos_token_id == TOKENIZER.pad_token_id == 0
    assert TOKENIZER("one two").input_ids == TOKENIZER("one two", add_special_tokens=False).input_ids  # adds nothing


@given(text=texts)
def test_every_text_comes_back(text):
    ids = TOKENIZER(text).input_ids
    assert TOKENIZER.decode(ids) == text and all(2 < i < VOCAB_SIZE for i in ids)


@given(number=st.integers(0, 10**12))
def test_digits_are_single_tokens(number):
    assert len(TOKENIZER(str(number)).input_ids) == len(str(number))
    assert TOKENIZER.convert_ids_to_tokens(TOKENIZER("1").input_ids) == ["1"]


@pytest.mark.parametrize("system", ["", "Be kind."])
def test_the_template_is_chatml(system):
    turns = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": "1+1?"}]
    opening = f"<|im_start|>system\n{system}<|im_end|>\n" * bool(system) + "<|im_start|>user\n1+1?<|im_end|>\n"
    assert TOKENIZER.apply_chat_template(turns, tokenize=False) == opening
    prompt = TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == opening + "<|im_start|>assistant\n"


def test_conversations_are_short():
    rows = generate(500, seed=3)
    chats = [[{"role": "user", "content": r["problem"]}, {"role": "assistant", "content": r["solution"]}] for r in rows]
    lengths = [len(ids) for ids in TOKENIZER.apply_chat_template(chats).input_ids]
    assert sum(lengths) / len(lengths) < 56 and max(lengths) <= 72

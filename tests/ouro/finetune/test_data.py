"""Conversations: exact masks under any truncation, honest counts, clear errors, one tokenisation, whole and blind packed rows."""

import copy
import json
import os
import subprocess
import sys
from collections import Counter

import datasets
import huggingface_hub.constants
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from looped_lib.core.checks import ConfigError
from looped_lib.core.files import write_jsonl
from looped_lib.core.project import find_root
from looped_lib.ouro.finetune import data, rows
from looped_lib.ouro.finetune.config import ChatDataConfig
from looped_lib.ouro.finetune.data import Collator, prompt_text, tokenise
from looped_lib.ouro.finetune.rows import draw, load_rows
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM
from looped_lib.tasks.problems import IGNORE
from looped_lib.tasks.tokenizer import SPECIAL
from looped_lib.tasks.word_problems import generate

TOKENIZER = AutoTokenizer.from_pretrained(find_root() / "data" / "tokenizer")
ROWS = generate(30, seed=5)
SYSTEM = "Be kind."
texts = st.text(min_size=1).filter(lambda text: text.strip() and not any(word in text for word in SPECIAL))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def config(**fields) -> ChatDataConfig:
    return ChatDataConfig(**{"dataset": "rows.jsonl", "system_prompt": "", **fields})


def tokens(rows, **fields):
    return tokenise(draw(Dataset.from_list(rows), config(**fields), seed=0), TOKENIZER, config(**fields))


def read(**fields) -> list[dict]:
    return load_rows(config(**fields), seed=0).dataset.to_list()


QA = [{name: row[name] for name in ("problem", "solution")} for row in ROWS]


def opening(row, system="") -> str:
    first = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{first}<|im_start|>user\n{row['problem']}<|im_end|>\n<|im_start|>assistant\n"


def by_offsets(row, system=""):
    """Ids and labels from the whole text: a token is learned if it starts in or after the answer."""
    start = len(opening(row, system))
    whole = TOKENIZER(f"{opening(row, system)}{row['solution']}<|im_end|>\n", return_offsets_mapping=True)
    ids = whole["input_ids"]
    return ids, [i if first >= start else IGNORE for i, (first, _) in zip(ids, whole["offset_mapping"], strict=True)]


@pytest.mark.parametrize("system", ["", SYSTEM])
def test_labels_are_the_answer_and_its_closing_tokens(system):
    done = tokens(ROWS, system_prompt=system)
    assert [(row["input_ids"], row["labels"]) for row in done.dataset] == [by_offsets(row, system) for row in ROWS]
    assert TOKENIZER.decode(done.dataset[0]["labels"][-2:]) == "<|im_end|>\n"
    assert done.report.tokens == sum(map(len, done.dataset["input_ids"]))
    assert done.report.answer_tokens == sum(label != IGNORE for row in done.dataset["labels"] for label in row)


def test_every_truncation_cuts_the_end_and_nothing_else():
    ids, labels = by_offsets(ROWS[0])
    prompt = labels.count(IGNORE)
    for max_len in range(2, len(ids) + 2):
        if max_len <= prompt:
            with pytest.raises(ValueError, match="nothing to learn from.* 1 without an answer"):
                tokens(ROWS[:1], max_len=max_len)
        else:
            done = tokens(ROWS[:1], max_len=max_len)
            assert done.dataset[0] == {"input_ids": ids[:max_len], "labels": labels[:max_len]}
            assert done.report.truncated == (max_len < len(ids)) and done.report.answer_tokens == min(max_len, len(ids)) - prompt


@settings(max_examples=50, deadline=None)
@given(problem=texts, solution=texts, system=st.one_of(st.just(""), texts.filter(lambda text: "\0" not in text)))
def test_any_texts_are_split_where_the_answer_begins(problem, solution, system):
    row = {"problem": problem, "solution": solution}
    ids, labels = tokens([row], system_prompt=system).dataset[0].values()
    n = labels.count(IGNORE)
    assert labels == [IGNORE] * n + ids[n:]
    assert TOKENIZER.decode(ids[:n]) == opening(row, system) == prompt_text(TOKENIZER, problem, system)
    assert TOKENIZER.decode(ids[n:]) == f"{solution}<|im_end|>\n"
    assert ids[:n] == TOKENIZER(prompt_text(TOKENIZER, problem, system), add_special_tokens=False).input_ids  # as generation


def test_what_is_left_out_is_counted():
    good, long = ROWS[0], {**ROWS[1], "solution": "1+1=2. " * 30}
    empty = [{**good, name: value} for name in ("problem", "solution") for value in (None, "", " \n")]
    done = tokens([*empty, good, {**good, "problem": "How many? " * 30}, long, good], max_len=90)
    report = done.report
    counts = (report.found, report.empty, report.rows, report.kept, report.no_answer, report.truncated)
    assert counts == (10, 6, 4, 3, 1, 1) and report.rule == "all usable rows"
    assert done.dataset["input_ids"][:] == [by_offsets(row)[0][:90] for row in (good, long, good)]
    assert str(report).startswith(
        "3 of 10 conversations kept (1 of them truncated; left out: 6 with an empty question or answer, 1 "
    )


def test_a_template_that_opens_generation_differently_is_refused():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\\n", "assistant\\n<think>")
    with pytest.raises(ValueError, match="row 0: the chat template must open the whole conversation with the prompt .*<think>"):
        tokenise(draw(Dataset.from_list(ROWS), config(), 0), tokenizer, config())


def write_source(folder, kind):
    rows = Dataset.from_list(ROWS)
    if kind == "folder":
        (folder / "data").mkdir()
        for i in range(2):
            rows.shard(2, i, contiguous=True).to_parquet(folder / "data" / f"train-0000{i}-of-00002.parquet")
        rows.select([0]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
        return folder
    if kind == "folder of lines":
        write_jsonl(folder / "train.jsonl", ROWS)
        write_jsonl(folder / "test.jsonl", ROWS[:1])
        return folder
    if kind == "parquet":
        rows.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    if kind == "saved to disk":
        rows.save_to_disk(folder / "saved")
        return folder / "saved"
    if kind == "splits saved to disk":
        DatasetDict(train=rows, test=rows.select([0])).save_to_disk(folder / "saved")
        return folder / "saved"
    (folder / "rows.jsonl").write_text("\n" + "\n\n".join(map(json.dumps, ROWS)) + "\n")
    return folder / "rows.jsonl"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder", "folder of lines", "saved to disk", "splits saved to disk"])
def test_every_source_gives_the_same_rows(tmp_path, kind):
    source = str(write_source(tmp_path, kind))
    rows = read(dataset=source)
    assert [{name: row[name] for name in QA[0]} for row in rows] == QA
    if "folder" in kind or kind == "splits saved to disk":
        assert read(dataset=source, split="test") == rows[:1]
        with pytest.raises(ConfigError, match=r"ChatDataConfig\.split must be one of the splits of .*: train, test, got 'tset'"):
            read(dataset=source, split="tset")
    if kind != "folder":
        with pytest.raises(ConfigError, match=r"ChatDataConfig\.subset"):
            read(dataset=source, subset="main")


def test_subsets_are_told_apart_and_named(tmp_path):
    """A folder as the hub has gsm8k: its README names the configurations."""
    told = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n" for name in ("main", "socratic")
    )
    (tmp_path / "README.md").write_text(f"{told}---\n")
    for name, part in (("main", QA[:3]), ("socratic", QA[3:5])):
        (tmp_path / name).mkdir()
        Dataset.from_list(part).to_parquet(tmp_path / name / "train-00000-of-00001.parquet")
    assert read(dataset=str(tmp_path), subset="main") == QA[:3] and read(dataset=str(tmp_path), subset="socratic") == QA[3:5]
    for wrong in ("", "mian"):
        with pytest.raises(ConfigError, match=rf"ChatDataConfig\.subset '{wrong}' is none of .*main.*socratic"):
            read(dataset=str(tmp_path), subset=wrong)


def test_tokens_of_saved_rows_are_cached_elsewhere(tmp_path):
    source = write_source(tmp_path, "saved to disk")
    before = sorted(path.name for path in source.iterdir())
    c = config(dataset=str(source))
    assert tokenise(load_rows(c, 0), TOKENIZER, c).report.kept == len(ROWS)
    assert sorted(path.name for path in source.iterdir()) == before


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_are_drawn_from_the_usable_ones_by_the_seed(tmp_path, seed):
    """Of a file that is sorted, and begins with rows of no use."""
    sources = [{**row, "source": "ab"[i >= 300]} for i, row in enumerate(generate(600, seed=2))]
    write_jsonl(tmp_path / "rows.jsonl", [{**row, "solution": blank} for row in sources for blank in (None, " ")][:50] + sources)
    c = config(dataset=str(tmp_path / "rows.jsonl"), max_rows=100)
    drawn = load_rows(c, seed)
    assert (drawn.found, drawn.empty, drawn.rule) == (650, 50, f"100 of the usable rows, drawn by seed {seed}")
    source = {row["problem"]: row["source"] for row in sources}
    taken = Counter(source[row["problem"]] for row in drawn.dataset)
    assert taken.total() == 100 and min(taken.values()) > 25
    assert drawn.dataset.to_list() == load_rows(c, seed).dataset.to_list() != load_rows(c, seed + 1).dataset.to_list()
    fewer = load_rows(config(dataset=c.dataset, max_rows=40), seed).dataset
    assert fewer.to_list() == drawn.dataset.to_list()[:40]
    assert len(load_rows(config(dataset=c.dataset, max_rows=600), seed).dataset) == 600
    report = tokenise(drawn, TOKENIZER, c).report
    assert (report.found, report.empty, report.rows, report.rule) == (650, 50, 100, drawn.rule)


def chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("assistant", "user")[i % 2 == 0], "content": text} for i, text in enumerate(turns)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_answer_of_a_conversation_is_learned(tmp_path, kind):
    system = [{"role": "system", "content": "Be brief."}]
    rows = [system + chat("1+1?", "2.", "2+2?", "4."), chat("3?", "3.", "never answered"), chat("no answer"), [], chat("a", " ")]
    path = str(tmp_path / f"rows.{kind}")
    if kind == "jsonl":
        write_jsonl(path, [{"messages": turns} for turns in [*rows, None]])
    else:
        Dataset.from_dict({"messages": [*rows, None]}).to_parquet(path)
    c = config(dataset=path, messages_column="messages", system_prompt=SYSTEM)
    done = tokenise(load_rows(c, 0), TOKENIZER, c)
    assert (done.report.found, done.report.empty, done.report.kept) == (6, 4, 2)
    wholes = [TOKENIZER.apply_chat_template(turns, tokenize=False) for turns in (rows[0], [*chat_opening(), *rows[1][:2]])]
    assert [TOKENIZER.decode(ids) for ids in done.dataset["input_ids"]] == wholes
    learned = [[i for i in labels if i != IGNORE] for labels in done.dataset["labels"]]
    assert [TOKENIZER.decode(ids) for ids in learned] == ["2.<|im_end|>\n4.<|im_end|>\n", "3.<|im_end|>\n"]
    for packing in (False, True):
        one = config(dataset=path, messages_column="messages", system_prompt=SYSTEM, packing=packing)
        assert tokenise(load_rows(one, 0), TOKENIZER, one).report == done.report


def chat_opening() -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}]


def test_a_conversation_of_one_turn_is_a_question_and_its_answer(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"messages": chat(*row.values())} for row in QA])
    c = config(dataset=str(tmp_path / "rows.jsonl"), messages_column="messages")
    assert tokenise(load_rows(c, 0), TOKENIZER, c).dataset.to_list() == tokens(QA).dataset.to_list()
    with pytest.raises(
        ConfigError, match="prompt_column must be a column of .*messages; or set messages_column to 'messages', got"
    ):
        read(dataset=c.dataset)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
@pytest.mark.parametrize("field", ["prompt_column", "response_column"])
def test_a_wrong_column_names_those_there_are(tmp_path, kind, field):
    source = str(write_source(tmp_path, kind))
    with pytest.raises(ConfigError, match=rf"ChatDataConfig\.{field} must be a column of .*problem, solution, answer, got 'q'"):
        read(dataset=source, **{field: "q"})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"problem": "a", ', "not JSON"),
        ('["a", "b"]', "must be an object with problem and solution, got list"),
        ('{"problem": 3, "solution": "b"}', "problem must be a text, got 3"),
        ('{"problem": "a", "solution": ["b"]}', r"solution must be a text, got \['b'\]"),
        ('{"problem": "a", "solution": "\\ud800"}', r"solution has half a surrogate pair"),
        ('{"problem": "a", "solution": "b", "problem": "c"}', r"not JSON \(key 'problem' twice in one object\)"),
        ('{"problem": "a", "solution": "b", "x": {"y": 1, "y": 2}}', r"not JSON \(key 'y' twice in one object\)"),
        ("[" * 100_000, r"not JSON that can be read \(nested too deeply\)"),
        ('{"problem": "a", "solution": "b", "x": ' + "9" * 5000 + "}", "not JSON .Exceeds the limit"),
    ],
    ids=lambda value: value[:40],
)
@pytest.mark.parametrize("folder", [False, True])
def test_a_bad_line_names_file_line_and_reason(tmp_path, line, reason, folder):
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n\n{line}\n")
    with pytest.raises(ValueError, match=f"train.jsonl, line 3: {reason}"):
        read(dataset=str(tmp_path if folder else path))


def test_columns_that_are_not_learned_from_may_hold_anything(tmp_path):
    """Where Arrow would want one type in a column, and a number that it has a type for."""
    odd = [1, "one", None, [1, "a"], {"b": 10**400}, float("nan"), "\ud800"]
    lines = [json.dumps({**row, "odd": value}) for row, value in zip(QA, odd, strict=False)]
    (tmp_path / "rows.jsonl").write_text("\ufeff" + "\n".join(lines))
    assert read(dataset=str(tmp_path / "rows.jsonl")) == QA[: len(odd)]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ("a", "messages must be a list of turns"),
        ([3], "must be a list of turns"),
        ([{"content": 3}], "messages: content must be"),
    ],
)
def test_a_wrong_conversation_names_its_line(tmp_path, turns, reason):
    write_jsonl(tmp_path / "rows.jsonl", [{"messages": chat("a", "b")}, {"messages": turns}])
    with pytest.raises(ValueError, match=f"rows.jsonl, line 2: .*{reason}"):
        read(dataset=str(tmp_path / "rows.jsonl"), messages_column="messages")


def test_bytes_that_are_no_text_name_the_line(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(json.dumps(ROWS[0]).encode() + b'\n{"problem": "\xff"}\n')
    with pytest.raises(ValueError, match="rows.jsonl, line 2: not UTF-8 .invalid start byte at byte 14"):
        read(dataset=str(tmp_path / "rows.jsonl"))


def test_a_wrong_type_names_row_and_column(tmp_path):
    Dataset.from_dict({"problem": ["a", None, "b"], "solution": [None, 4, 5]}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="rows.parquet, row 1: solution must be a text, got 4"):
        read(dataset=str(tmp_path / "rows.parquet"))


def test_what_holds_no_rows_or_is_broken_is_refused(tmp_path):
    (tmp_path / "blank.jsonl").write_text("\n")
    (tmp_path / "empty.jsonl").touch()
    Dataset.from_list(ROWS).select([]).to_parquet(tmp_path / "empty.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not at all")
    (tmp_path / "rows.csv").write_text("problem,solution\na,b\n")
    (tmp_path / "folder").mkdir()
    for name, error, message in (
        ("blank.jsonl", ValueError, "blank.jsonl: no rows"),
        ("empty.jsonl", ValueError, "empty.jsonl: no rows that can be read"),
        ("empty.parquet", ValueError, "empty.parquet: no rows"),
        ("broken.parquet", ValueError, "broken.parquet: no rows that can be read .Parquet magic"),
        ("rows.csv", ConfigError, r"ChatDataConfig\.dataset must be a \.jsonl or \.parquet file, got"),
        (
            "folder",
            ConfigError,
            r"ChatDataConfig\.dataset must be a folder with \.jsonl or \.parquet files, or of save_to_disk, got",
        ),
    ):
        with pytest.raises(error, match=message):
            read(dataset=str(tmp_path / name))
    with pytest.raises(ValueError, match="nothing to learn from: 0 of 1"):
        tokens([{"problem": "a", "solution": ""}])


@pytest.mark.parametrize("path", ["rows.jsonl", "x/rows.parquet", "./rows", "/nowhere/rows", "~/rows", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"ChatDataConfig\.dataset must be an existing folder, .* got"):
        read(dataset=path)


def test_without_network_a_hub_name_asks_for_a_local_copy(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"ChatDataConfig\.dataset 'AI-MO/NuminaMath-1.5' is no file .* copy the"):
        load_rows(ChatDataConfig(), 74)


def test_a_hub_dataset_is_taken_by_split(monkeypatch):
    monkeypatch.setattr(rows, "load_dataset", lambda name, subset: DatasetDict(train=Dataset.from_list(ROWS)))
    assert read(dataset="owner/name") == ROWS
    with pytest.raises(ConfigError, match=r"ChatDataConfig\.split must be one of the splits of owner/name: train, got 'test'"):
        read(dataset="owner/name", split="test")


@pytest.mark.parametrize("packing", [False, True])
def test_rows_are_tokenised_once(tmp_path, monkeypatch, packing):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [*ROWS, {**ROWS[0], "solution": None}])
    c = config(dataset=str(path), packing=packing)
    first = tokenise(load_rows(c, 0), TOKENIZER, c)
    TOKENIZER(["a", "b c"], padding=True)  # leaves the tokenizer in another state

    def refuse(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(data, "_tokenise_batch", refuse)
    again = tokenise(load_rows(c, 0), TOKENIZER, c)
    assert again.report == first.report and again.dataset.to_list() == first.dataset.to_list()
    assert again.dataset.cache_files == first.dataset.cache_files != []

    other = copy.deepcopy(TOKENIZER)
    other.chat_template += " "
    for changed, tokenizer in ((config(dataset=str(path), packing=packing, max_len=60), TOKENIZER), (c, other)):
        with pytest.raises(InterruptedError):
            tokenise(load_rows(changed, 0), tokenizer, changed)
    write_jsonl(path, [*ROWS[::-1], {**ROWS[0], "solution": None}])  # as long as before
    with pytest.raises(InterruptedError):
        tokenise(load_rows(c, 0), TOKENIZER, c)


def test_another_process_finds_the_cache(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    code = """if True:
        import sys
        from transformers import AutoTokenizer
        from looped_lib.ouro.finetune.data import ChatDataConfig, tokenise
        from looped_lib.ouro.finetune.rows import load_rows
        config = ChatDataConfig(dataset=sys.argv[1], packing=True)
        print(tokenise(load_rows(config, 0), AutoTokenizer.from_pretrained(sys.argv[2]), config).dataset.cache_files)
    """
    cache = str(datasets.config.HF_DATASETS_CACHE)
    command = [sys.executable, "-c", code, str(tmp_path / "rows.jsonl"), TOKENIZER.name_or_path]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_DATASETS_CACHE": cache}, check=True)
    c = ChatDataConfig(dataset=str(tmp_path / "rows.jsonl"), packing=True)
    assert str(tokenise(load_rows(c, 0), TOKENIZER, c).dataset.cache_files) == done.stdout.strip() != "[]"


def conversations(row) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(ids, labels) of each conversation of a packed row."""
    starts = [i for i, position in enumerate(row["position_ids"]) if position == 0]
    pieces = [slice(*pair) for pair in zip(starts, [*starts[1:], None], strict=True)]
    return [(tuple(row["input_ids"][piece]), tuple(row["labels"][piece])) for piece in pieces]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=40), max_len=st.integers(14, 90))
def test_packing_keeps_every_conversation_whole_and_once(sizes, max_len):
    rows = [{"problem": "a", "solution": "7" * n} for n in [*sizes, 1]]
    plain, packed = tokens(rows, max_len=max_len), tokens(rows, max_len=max_len, packing=True)
    assert packed.report == plain.report
    found = [pair for row in packed.dataset for pair in conversations(row)]
    assert Counter(found) == Counter((tuple(row["input_ids"]), tuple(row["labels"])) for row in plain.dataset)
    assert all(labels[0] == IGNORE for _, labels in found)  # what the conversation before would have to guess
    for row in packed.dataset:
        assert row["position_ids"] == [i for ids, _ in conversations(row) for i in range(len(ids))]
        assert len(row["input_ids"]) == len(row["labels"]) <= max_len
    lengths = [len(row["input_ids"]) for row in packed.dataset]
    assert all(a + b > max_len for i, a in enumerate(lengths) for b in lengths[:i])  # no two rows would fit into one


def test_a_batch_is_padded_on_the_right():
    rows = [tokens([row]).dataset[0] for row in ROWS[:4]]
    batch = Collator(TOKENIZER)(rows)
    width = max(len(row["input_ids"]) for row in rows)
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    for i, row in enumerate(rows):
        gap = width - len(row["input_ids"])
        assert batch["input_ids"][i].tolist() == row["input_ids"] + [TOKENIZER.pad_token_id] * gap
        assert batch["labels"][i].tolist() == row["labels"] + [IGNORE] * gap
        assert batch["attention_mask"][i].tolist() == [1] * (width - gap) + [0] * gap


def test_rows_of_one_length_have_no_mask():
    row = tokens([ROWS[0]]).dataset[0]
    assert set(Collator(TOKENIZER)([row, row])) == {"input_ids", "labels"}


def test_packed_conversations_are_blind_to_each_other_and_to_padding():
    model = OuroForCausalLM(
        OuroConfig(
            vocab_size=512,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            total_ut_steps=2,
        )
    ).double()
    done = tokens(ROWS[:9], packing=True, max_len=200)
    batch = Collator(TOKENIZER)(list(done.dataset))
    assert set(batch) == {"input_ids", "labels", "position_ids"} and (batch["labels"][:, -1] == IGNORE).any()
    with torch.no_grad():
        together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        seen = 0
        for logits, row in zip(together, done.dataset, strict=True):
            start = 0
            for ids, _ in conversations(row):
                alone = model(input_ids=torch.tensor([ids])).logits[0]
                torch.testing.assert_close(logits[start : start + len(ids)], alone, rtol=0, atol=1e-10)
                start, seen = start + len(ids), seen + 1
            gap = len(logits) - start
            if gap:
                alone = model(input_ids=torch.full((1, gap), TOKENIZER.pad_token_id)).logits[0]
                torch.testing.assert_close(logits[start:], alone, rtol=0, atol=1e-10)
    assert seen == 9


def test_a_tokenizer_without_padding_is_refused():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="padding token"):
        Collator(tokenizer)

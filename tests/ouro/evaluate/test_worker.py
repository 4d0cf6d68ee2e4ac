"""What a worker reads and writes, in this process; its engine says what it is told to, up to the stops that it is given."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from learned_ouro import TOKENIZER
from lm_eval.api.model import LM

from looped_lib.config import to_dict
from looped_lib.core.checks import ConfigError
from looped_lib.core.files import read_json, write_json, write_jsonl
from looped_lib.ouro.evaluate import checks
from looped_lib.ouro.evaluate.cells import EvaluationConfig
from looped_lib.ouro.evaluate.tables import headlines, record, results, samples, training, without_accuracy
from looped_lib.ouro.evaluate.worker import Worker
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.plots import benchmarks
from looped_lib.widgets import answers

SUMS = ((3, 4), (10, 2), (5, 5), (6, 1))
SVAMP = [{"Body": f"Ann has {a} pens and buys {b} more", "Question": "How many?", "Answer": f"{a + b}.0"} for a, b in SUMS]
ON_AND_ON = "\n\nTom has 3 pens. How many?\nPut the final answer in \\boxed{}. \\boxed{99}"
OWN = """
task: {name}
dataset_path: json
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


class Script(LM):
    """Says `text` to every question, until one of the stops."""

    tokenizer_name = "script"
    stop = None

    def prepare(self, requests, stops):
        """There is nothing to prepare."""

    def __init__(self, text: str = ""):
        super().__init__()
        self.text, self.asked = text, []

    def generate_until(self, requests, **_):
        said = []
        for request in requests:
            context, how = request.args
            self.asked.append(SimpleNamespace(context=context, how=how))
            text = self.text
            for stop in how["until"]:
                text = text.split(stop)[0]
            said.append(text)
        return said

    def chat_template(self, *_):
        return TOKENIZER.chat_template

    def apply_chat_template(self, messages, add_generation_prompt=True):
        return TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def loglikelihood(self, requests, **_):
        return [(-1.0, True) for _ in requests]

    def loglikelihood_rolling(self, requests, **_):
        return [-2.0 * len(request.args[0].split()) for request in requests]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Of svamp on a local copy, by a model that is only a folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "model"
    OuroConfig(vocab_size=512, hidden_size=32, num_attention_heads=4).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    write_jsonl(tmp_path / "svamp.jsonl", SVAMP)
    return EvaluationConfig(
        checkpoints={"a": str(folder)},
        tasks=("svamp",),
        depths=(2,),
        backend="transformers",
        max_len=1024,
        max_new_tokens=48,
        data={"svamp": str(tmp_path / "svamp.jsonl")},
    )


def worker_of(config: EvaluationConfig, out: Path) -> Worker:
    files = checks._task_files(config, set(config.tasks))
    asked = [("T=2", task) for task in config.tasks]
    spec = {"config": to_dict(config), "checkpoint": "a", "cells": asked, "tasks": files, "weights": "w"}
    write_json(out / "a" / "engine" / "spec.json", spec)
    return Worker(out / "a" / "engine")


def measured(config: EvaluationConfig, out: Path, engine: Script) -> dict:
    """The cell of the first task as it is written."""
    worker, name = worker_of(config, out), config.tasks[0]
    worker.measure(name, worker.read(name, worker.spec["tasks"][name]), engine)
    return read_json(out / "a" / "T=2" / f"{name}.json")


def own_task(folder: Path, name: str, more: str = "") -> dict[str, str]:
    """A task file of a user's own; returns what a config says of its data."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(OWN.format(name=name) + more)
    rows = [{"question": f"{a} and {b}?", "answer": str(a + b)} for a, b in SUMS]
    write_jsonl(folder / f"{name}.jsonl", rows)
    return {name: str(folder / f"{name}.jsonl")}


def test_checkpoints_of_a_run_are_told_by_their_updates(config, tmp_path):
    """Of a run that has ended, its model too; a model of nobody's run is not among them."""
    run, other = tmp_path / "sft-seed0", Path(config.checkpoints["a"])
    shutil.copytree(other, run / "model")
    shutil.copytree(other, run / "checkpoints" / "step_00000300")
    write_json(run / "data.json", {"updates": 500})
    for out, source in (("end", run / "model"), ("middle", run / "checkpoints" / "step_00000300"), ("other", other)):
        measured(replace(config, checkpoints={"a": str(source)}), tmp_path / "out" / out, Script("\\boxed{7}"))
        (tmp_path / "out" / out / "a").rename(tmp_path / "out" / f"{out}-model")
        (tmp_path / "out" / out).rmdir()
    table = headlines(training(tmp_path / "out"))
    assert table[["run", "depth", "updates", "value"]].values.tolist() == [["sft-seed0", 2, 300, 0.5], ["sft-seed0", 2, 500, 0.5]]
    (drawn,) = benchmarks.over_training(table).data
    assert (drawn.name, list(drawn.x), list(drawn.y)) == ("sft-seed0, T = 2", [300, 500], [50, 50])
    assert not benchmarks.over_training(headlines(training(tmp_path / "nothing"))).data


@pytest.mark.parametrize("fewshot", [0, 2])
def test_in_plain_text_the_first_answer_is_graded(config, tmp_path, fewshot):
    plain = replace(config, chat_template=False, system_prompt="", fewshot=fewshot)
    engine = Script("3+4=7.\n\n" * (not fewshot) + "It is \\boxed{7}." + ON_AND_ON)
    cell = measured(plain, tmp_path / "out", engine)
    assert cell["metrics"]["exact_match"][0] == 0.5  # of 3+4 and 6+1; the last box would be right of none
    assert all(row.endswith("\\boxed{7}") or row.endswith("\\boxed{7}.") for row in samples(tmp_path / "out", "svamp")["answer"])
    assert engine.asked[0].context.count("Put the final answer") == fewshot + 1 and "<|im_start|>" not in engine.asked[0].context


@pytest.mark.parametrize("fewshot", [0, 2])
def test_without_a_box_the_first_answer_is_graded_too(config, tmp_path, fewshot):
    plain = replace(config, chat_template=False, fewshot=fewshot)
    assert measured(plain, tmp_path / "out", Script("The answer is 7." + ON_AND_ON))["metrics"]["exact_match"][0] == 0.5


def test_in_a_chat_the_last_box_counts_and_paragraphs_are_kept(config, tmp_path):
    cell = measured(config, tmp_path / "out", Script("Perhaps \\boxed{8}.\n\nNo: \\boxed{7}<|im_end|>"))
    assert cell["metrics"]["exact_match"][0] == 0.5


def test_own_stops_of_a_task_are_kept(config, tmp_path):
    data = own_task(tmp_path / "tasks", "mine", 'generation_kwargs: {until: ["Q:"]}\n')
    plain = replace(config, tasks=("mine",), data=data, task_folder=str(tmp_path / "tasks"), chat_template=False, fewshot=1)
    engine = Script("7 Q:")
    measured(plain, tmp_path / "out", engine)
    assert engine.asked[0].how["until"] == ["Q:"]


def test_all_repeats_are_kept_and_counted(config, tmp_path):
    data = own_task(tmp_path / "tasks", "mine", "repeats: 3\n")
    thrice = replace(config, tasks=("mine",), data=data, task_folder=str(tmp_path / "tasks"), temperature=0.5)
    cell = measured(thrice, tmp_path / "out", Script("7 pens"))
    rows = [json.loads(line) for line in (tmp_path / "out" / "a" / "T=2" / "mine.samples.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["answers"] == ["7 pens"] * 3 and row["answer"] == "7 pens" for row in rows)
    tokens = cell["tokens_per_sec"] * cell["seconds"]
    assert tokens == pytest.approx(12 * len(TOKENIZER("7 pens").input_ids))


@pytest.mark.parametrize(
    "more, changes, said",
    [
        ("repeats: 3\n", {}, "mine asks for 3 answers to each problem .*mine.yaml"),
        ("generation_kwargs: {do_sample: true, temperature: 0.2}\n", {}, "temperature must be 0.2, got 0.0: mine samples"),
        ("generation_kwargs: {do_sample: true}\n", {"temperature": 0.5}, "temperature must be 1.0, got 0.5: mine samples"),
    ],
)
def test_sampling_that_a_task_asks_for_is_not_passed_over(config, tmp_path, more, changes, said):
    data = own_task(tmp_path / "tasks", "mine", more)
    own = replace(config, tasks=("mine",), data=data, task_folder=str(tmp_path / "tasks"), **changes)
    with pytest.raises(ConfigError, match=said):
        checks._task_files(own, {"mine"})


@pytest.mark.parametrize("copy", ["a [copy] of*.jsonl", "a [copy]"])
def test_a_path_with_wildcards_is_one_path(config, tmp_path, copy):
    (tmp_path / "a c of.jsonl").write_text('{"wrong": 1}\n')
    for file in [copy] if copy.endswith("jsonl") else [f"{copy}/test.jsonl", f"{copy}/train.jsonl"]:
        write_jsonl(tmp_path / file, SVAMP)
    cell = measured(replace(config, data={"svamp": str(tmp_path / copy)}), tmp_path / "out [1]", Script("\\boxed{7}"))
    assert cell["samples"] == 4 and len(samples(tmp_path / "out [1]", "svamp")) == 4


@pytest.mark.parametrize("splits", ["test_split: null\nvalidation_split: val\n", "test_split: null\ntraining_split: train\n"])
def test_a_local_copy_needs_no_test_split(config, tmp_path, splits):
    data = own_task(tmp_path / "tasks", "mine", splits)
    path = tmp_path / "tasks" / "mine.yaml"
    path.write_text(path.read_text().replace("test_split: test\n", ""))
    own = replace(config, tasks=("mine",), data=data, task_folder=str(tmp_path / "tasks"), fewshot=2)
    assert measured(own, tmp_path / "out", Script("7"))["metrics"]["exact_match"][0] == 0.5


def test_a_perplexity_is_recorded_and_is_no_accuracy(config, tmp_path):
    data = own_task(tmp_path / "tasks", "pages")
    path = tmp_path / "tasks" / "pages.yaml"
    own = "output_type: loglikelihood_rolling\nmetric_list: [{metric: word_perplexity}]\n"
    path.write_text(path.read_text().split("metric_list")[0] + own)
    write_jsonl(data["pages"], [{"question": "", "answer": "one two " * 400}])  # longer than max_len
    own = replace(config, tasks=("pages",), data=data, task_folder=str(tmp_path / "tasks"))
    cell = measured(own, tmp_path / "out", Script())
    assert cell["metrics"]["word_perplexity"][0] == pytest.approx(7.389, rel=0.01)
    table = results(tmp_path / "out")
    assert headlines(table).empty and len(without_accuracy(table)) == 1
    assert record(tmp_path / "out")["accuracy"] == {} and len(record(tmp_path / "out")["table"]) == 1
    shown = samples(tmp_path / "out", "pages")
    assert shown["right"].isna().all() and "log-probability of the text" in shown["answer"][0]
    assert "–" in answers.overview(shown).to_html() and "✗" not in answers.page(shown, 0)

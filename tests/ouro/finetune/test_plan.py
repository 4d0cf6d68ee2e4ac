"""The plan of a fine-tuning study, and watching its jobs: numbers re-derived, a job's metrics followed to their end."""

import json
import math
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
import pytest

from looped_lib.core.files import write_json, write_jsonl
from looped_lib.ouro.finetune import machine, plan, presets
from looped_lib.ouro.finetune.config import ChatDataConfig
from looped_lib.ouro.finetune.folder import DATA, METRICS, RESULT
from looped_lib.ouro.finetune.launch import JOB, LOG, Job
from looped_lib.ouro.model import costs
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.plots.finetuning import finetuning
from looped_lib.samplers import FixedLoops
from looped_lib.tasks.word_problems import generate
from looped_lib.widgets import jobs

H100S = plan.Machine("H100", 8, 80e9, 400e12, is_gpu=True)


def lines(n: int, penalty: float = 0.1) -> list[dict[str, float]]:
    return [
        {
            **{"step": 10 * (i + 1), "loss": 1 / (i + 1), "penalty": penalty, "grad_norm": 1.0, "tokens_per_sec": 100.0},
            **{"seconds_per_update": 3.0, "flops_per_sec": 1e9, "memory_bytes": 2.0**30},
        }
        for i in range(n)
    ]


def write_metrics(run_dir, n: int) -> None:
    run_dir.mkdir(exist_ok=True)
    (run_dir / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines(n)))


def test_the_papers_runs_fit_eight_gpus_and_cost_what_their_flops_say():
    table = plan.plan(presets.modes(presets.stars("paper", "unused")), OuroConfig(), 8, H100S)
    assert list(table.index) == list(presets.MODES) and table["fits"].all()
    assert (table["updates"] == 1563).all()  # 400,000 rows, 256 an update
    assert (table["rows"] == "at most 400,000").all() and (table["epochs"] == "at least 1").all()  # of the hub
    sft = 1563 * 256 * 2048 * costs.training_flops(OuroConfig(), 4 * 4 / 3, 2048) / (8 * 400e12) / 60
    assert table.loc["sft", "minutes, at most"] == pytest.approx(sft, abs=0.1)
    jsrr = 1563 * 256 * 2048 * costs.training_flops(OuroConfig(), 4 * 4 / 3 + 2, 2048) / (8 * 400e12) / 60
    assert table.loc["jsrr", "minutes, at most"] == pytest.approx(jsrr, abs=0.1)
    assert table.loc["stars", "loops"] == "1 to 16, mean 5.9" and table.loc["sft", "loops"] == "4"


def test_what_does_not_fit_is_said():
    small = plan.Machine("small", 1, 16e9, 1e12, is_gpu=True)
    assert not plan.plan({"stars": presets.stars("paper", "unused")}, OuroConfig(), 1, small).loc["stars", "fits"]


def test_rows_are_those_that_are_there(tmp_path):
    """A file of 300 rows, 20 of them blank, with the paper's limit of 400,000."""
    rows = generate(280, seed=1) + [{"problem": "a", "solution": ""}] * 20
    write_jsonl(tmp_path / "rows.jsonl", rows)
    base = replace(presets.stars("paper", "unused"), data=ChatDataConfig(dataset=str(tmp_path / "rows.jsonl")))
    few = replace(base, data=replace(base.data, max_rows=64), updates=replace(base.updates, batch_size=64, steps=4))
    table = plan.plan({"all": base, "few": few}, OuroConfig(), 8, H100S)
    assert list(table["rows"]) == ["280", "64"] and list(table["updates"]) == [2, 4] and list(table["epochs"]) == ["1.8", "4"]


def test_a_plan_of_memory_counts_the_process_and_the_penalty():
    """A tiny model is all libraries: one process with one was seen to hold 0.63 GiB, and 1.63 with 21 million weights."""
    cpu = plan.Machine("CPU", 2, 64e9, 1e10, is_gpu=False)
    small = presets.stars("smoke", "unused")
    small = replace(small, loops=FixedLoops(4), data=replace(small.data, max_rows=4))
    sizes = {"vocab_size": 512, "num_attention_heads": 4}
    for width, layers, held in ((32, 2, 642), (512, 6, 1673)):
        architecture = OuroConfig(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, **sizes)
        needed = plan.plan({"small": small}, architecture, 1, cpu).loc["small", "memory needed, GiB"]
        assert held / 1024 < needed < 1.5 * held / 1024


def test_a_gpu_that_does_not_say_its_memory_is_no_obstacle():
    unknown = plan.Machine("GB10", 1, float("nan"), 1e14, is_gpu=True)
    assert plan.plan({"stars": presets.stars("paper", "unused")}, OuroConfig(), 1, unknown).loc["stars", "fits"] == "not known"


def test_a_machine_without_gpus_counts_its_cores(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    found = plan.machine()
    assert not found.is_gpu and found.count >= 1 and found.memory > 1e9 and found.flops > 1e9
    assert 1 <= plan.default_processes(found) <= 2


NAME = "NVIDIA H100 80GB HBM3"
EIGHT = [f"{NAME}, {81559 + i}" for i in range(8)]
LISTED = [f"GPU {i}: {NAME} (UUID: GPU-{i}{i}aa-bb)" for i in range(8)]
SPLIT = [
    *LISTED[:1],
    "  MIG 3g.40gb     Device  0: (UUID: MIG-1111)",
    "  MIG 1c.3g.40gb  Device  1: (UUID: MIG-2222)",
    *LISTED[1:2],
]


def ask(monkeypatch, visible: str | None, table: list[str], listed: list[str]) -> plan.Machine:
    """The machine that an nvidia-smi with these answers describes."""
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    monkeypatch.setattr(machine, "_ask", lambda *question: listed if question == ("-L",) else table)
    return plan.machine()


@pytest.mark.parametrize(
    ("visible", "count", "mebibytes"),
    [
        (None, 8, 81559),
        ("4,5", 2, 81563),
        (" 7 ", 1, 81566),
        ("3,-1,4", 1, 81562),
        ("2,9,3", 1, 81561),  # a name that is none ends the list
        ("GPU-55aa-bb,GPU-2", 2, 81561),  # a UUID may be cut short
    ],
)
def test_gpus_are_those_that_cuda_shows(monkeypatch, visible, count, mebibytes):
    found = ask(monkeypatch, visible, EIGHT, LISTED)
    assert (found.device, found.count, found.memory, found.is_gpu) == (NAME, count, mebibytes * 2**20, True)
    assert found.flops == pytest.approx(0.45 * 989e12) and plan.default_processes(found) == count


@pytest.mark.parametrize("visible", ["", "-1", "8", "GPU-xyz"])
def test_no_gpu_that_cuda_shows_is_none(monkeypatch, visible):
    assert not ask(monkeypatch, visible, EIGHT, LISTED).is_gpu


def test_parts_of_a_gpu_have_a_part_of_it(monkeypatch):
    found = ask(monkeypatch, "MIG-1111,MIG-2222", EIGHT[:2], SPLIT)
    assert (found.count, found.memory, found.device) == (2, 40e9, f"{NAME} MIG 1c.3g.40gb")
    assert found.flops == pytest.approx(0.45 * 989e12 / 7)
    assert ask(monkeypatch, None, EIGHT[:2], SPLIT).count == 1  # the one that is whole
    assert ask(monkeypatch, None, EIGHT[:1], SPLIT[:3]).device == f"{NAME} MIG 3g.40gb"


@pytest.mark.parametrize("figure", ["[N/A]", "[Not Supported]", ""])
def test_a_gpu_without_a_figure_of_memory_is_found(monkeypatch, figure):
    found = ask(monkeypatch, None, [f"NVIDIA GB10, {figure}"], [])
    assert found.device == "NVIDIA GB10" and math.isnan(found.memory) and found.count == 1


def test_what_a_run_took():
    spent = plan.spent({"a": pd.DataFrame(lines(4))})
    assert spent.loc["a", "minutes"] == 2.0 and spent.loc["a", "memory held, GiB"] == 1.0  # 40 updates of 3 s


def test_curves_leave_out_a_penalty_that_is_not_there():
    figure = finetuning({"with": pd.DataFrame(lines(3)), "without": pd.DataFrame(lines(3, penalty=0.0)), "none": pd.DataFrame()})
    assert len(figure.data) == 12 and len({trace.line.color for trace in figure.data}) == 3
    penalties = {trace.name: len(trace.x) for trace in figure.data if trace.yaxis == "y2"}
    assert penalties == {"with": 3, "without": 0, "none": 0}


def test_watching_follows_a_job_to_its_end(tmp_path, monkeypatch, capfd):
    states = iter(["running", "running", "finished", "finished"])
    rows = iter([1, 2, 3, 3])
    monkeypatch.setattr(Job, "state", property(lambda job: next(states)))
    monkeypatch.setattr("looped_lib.ouro.finetune.launch.LOOK_EVERY", 0.0)
    read = Job.metrics
    monkeypatch.setattr(Job, "metrics", lambda job: (write_metrics(job.run_dir, next(rows)), read(job))[1])
    figures = []
    monkeypatch.setattr(jobs, "display", figures.append)
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / DATA, {"updates": 30})
    jobs.watch(Job(tmp_path / "run"), updates=1563)  # the plan knew no better
    assert isinstance(figures[0].figure, go.FigureWidget)
    assert list(figures[0].figure.data[0].x) == [10, 20, 30]
    assert "30/30" in capfd.readouterr().err


def test_watching_a_failed_job_says_why(tmp_path):
    write_json(tmp_path / JOB, {"pid": 2**22 + 1, "created": 0.0, "log_starts": 0})
    (tmp_path / LOG).write_text("noise\nerror: UpdatesConfig.lr must be a number\nmore noise\n")
    with pytest.raises(RuntimeError, match="error: UpdatesConfig.lr must be a number"):
        jobs.watch(Job(tmp_path), updates=1, live=False)


def test_a_finished_job_is_not_watched(tmp_path, capsys):
    write_json(tmp_path / RESULT, {"seconds": 12.3})
    jobs.watch(Job(tmp_path), updates=1)
    assert "finished before, 12 s" in capsys.readouterr().out


def test_studies_pretrain_first_unless_told_what_to_start_from(tmp_path):
    runs, architecture = presets.study("smoke", tmp_path, "all", seed=3)
    assert list(runs) == [f"{name}-seed3" for name in ("base", *presets.MODES)] and architecture.hidden_size == 32
    assert runs["stars-seed3"].model == str(tmp_path / "base-seed3" / "model")
    assert list(presets.study("smoke", tmp_path, "jsrr", model=str(tmp_path / "architecture"))[0]) == ["jsrr-seed0"]
    for wrong in ("", "sft srats"):
        with pytest.raises(ValueError, match="modes must be all, or some of sft, random, jsrr, stars"):
            presets.study("smoke", tmp_path, wrong)
    with pytest.raises(ValueError, match="preset must be one of smoke, cpu, paper, got 'cpus'"):
        presets.study("cpus", tmp_path)

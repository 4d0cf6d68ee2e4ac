"""Parts that are defined outside of the library go through all of it: train, kill, resume, depths, explorer, sweep, compare."""

import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from own_parts import NextChange, Reverse, TinyOuro, own
from small_runs import assert_equal, weights

from looped_lib.config import ConfigError, ExperimentConfig, ModelConfig, from_dict, to_dict
from looped_lib.core.files import read_json, write_json
from looped_lib.dynamics.exits import exit_curve
from looped_lib.dynamics.spectrum import radius
from looped_lib.dynamics.trajectory import trajectory
from looped_lib.models.config import Model
from looped_lib.models.norms import Norm, make_norm
from looped_lib.models.protocols import Cached, Looped, Trainable
from looped_lib.models.state import loop_at
from looped_lib.regularizers import Penalty
from looped_lib.runs.compare import compare
from looped_lib.runs.experiment import run_experiment
from looped_lib.runs.folders import load_metrics, read_config
from looped_lib.samplers import LoopSampler
from looped_lib.studies.study import load
from looped_lib.studies.sweep import sweep
from looped_lib.tasks.problems import alike
from looped_lib.tasks.task import Task
from looped_lib.training.trainer import Trainer, load_model, train
from looped_lib.widgets.explorer import Walks, open_run

HERE = Path(__file__).parent
DEPTH = 6
KILLED = """
import os, signal, sys
from own_parts import own
from looped_lib.training.trainer import Trainer, train
take = Trainer.train_step
def step(self):
    if self.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self)
Trainer.train_step = step
train(own(), sys.argv[1], progress=False)
"""
SWEPT = """
from dataclasses import replace
from own_parts import NextChange, own
from looped_lib.core.files import write_json
from looped_lib.runs.experiment import run_experiment
config = own(seed=seed, terms={"next": NextChange(power=power)})
result = run_experiment(config, f"{out}/own-seed{seed}", 4)
write_json(f"{out}/result.json", {"depths": result["depths"], "accuracy": {"own": result["accuracy"]}})
"""
STUDY = "about: own parts\nnotebook: own.ipynb\ngrid: {power: [1]}\nseeds: [0]\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "own"
    return folder, run_experiment(own(), folder, DEPTH, progress=False)


def test_killed_and_resumed_it_ends_in_the_same_bits(run, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a"], cwd=HERE, timeout=120)
    assert done.returncode == -signal.SIGKILL
    train(own(), tmp_path / "a", progress=False)
    assert_equal(weights(tmp_path / "a"), weights(run[0]))
    assert {"ce", "penalty", "next"} < set(load_metrics(run[0].parent).columns)


def test_the_terms_of_the_loss_are_summed_by_their_weights():
    trainer = Trainer(own())
    trainer.step = 2
    found = trainer.train_step()
    assert float(found["loss"]) == pytest.approx(float(0.9 * found["ce"] + 0.1 * found["penalty"] + 0.5 * found["next"]))
    assert trainer.objective.weights(0) == {"ce": 1.0, "penalty": 0.0, "next": 0.0}


def test_the_folder_is_read_back_where_the_classes_are_defined_and_one_line_says_so_elsewhere(run, monkeypatch):
    assert read_config(run[0]) == own() and from_dict(ExperimentConfig, to_dict(own())) == own()
    fields = {"loops": LoopSampler, "model": Model, "data": Task, "terms.next": Penalty}
    for name, family in fields.items():
        with monkeypatch.context() as patch:
            patch.setattr(family, "kinds", {})
            with pytest.raises(ConfigError) as e:
                read_config(run[0])
        kind = {"loops": "OddLoops", "model": "TinyModel", "data": "Reverse", "terms.next": "NextChange"}[name]
        assert f"config.json: {name}.kind must be one of" in str(e.value) and str(e.value).endswith(f"got {kind!r}")
        assert "a class of your own whose module is imported first" in str(e.value) and "\n" not in str(e.value)


def test_accuracy_by_depth_is_that_of_generating_letter_by_letter(run):
    model, task = load_model(run[0]), own().data
    right = torch.zeros(DEPTH + 1)
    for prompt, answer in task.generate(task.n_test, task.seed, task.n_train):
        for depth in range(DEPTH + 1):
            ids = [task.alphabet.index(c) for c in prompt]
            for _ in range(len(answer) + 1):
                h = model.embed(torch.tensor([ids]))
                for _ in range(depth):
                    h = model.step(h)
                ids.append(int(model.readout(h)[0, -1].argmax()))
            right[depth] += "".join(task.alphabet[i] for i in ids) == prompt + answer + "§"
    assert run[1]["accuracy"] == (right / task.n_test).tolist()


def test_the_explorer_reads_and_writes_the_tasks_own_letters(run):
    opened = open_run(run[0], "own")
    assert len(opened.held_out) == 16 and all(prompt.endswith(">") for prompt in opened.held_out)
    walk = Walks().walk(opened, "abb", DEPTH)
    assert (walk.problem, walk.truth) == ("abb>", "bba§") and set("".join(walk.says)) <= set("ab>Ʌ§")
    with pytest.raises(ValueError, match="write letters a and b"):
        Walks().walk(opened, "1+2=", DEPTH)


def test_it_is_swept_and_compared(run, tmp_path):
    (tmp_path / "own_parts.py").write_text((HERE / "own_parts.py").read_text())
    parameters = 'preset: str = "cpu"\npower: int = 1\nseed: int = 0\nout: str = ""'
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(SWEPT)]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "own.ipynb")
    (tmp_path / "study.yaml").write_text(STUDY)
    sweep(load(tmp_path / "study.yaml"), "cpu", tmp_path / "out", 1)
    (swept,) = (path.parent for path in (tmp_path / "out").rglob("own-seed0/config.json"))
    found = compare([swept, run[0]])
    assert sorted(found.parameters["terms.next.power"]) == [1, 2] and {1, 2, 3, 4} <= set(found.curves.depth)


@pytest.mark.parametrize(
    "model", [ModelConfig(d_model=8, n_heads=2, d_ff=8, norm_type="MaxNorm", max_len=16), TinyOuro(vocab_size=5)]
)
def test_the_parts_go_with_the_librarys_own_models(model, tmp_path):
    """The transformer with the norm, and Ouro: carried states, both penalties, exits, spectra and the explorer work on it."""
    run_experiment(own(model=model), tmp_path, DEPTH, progress=False)
    trained = load_model(tmp_path)
    held_out = own().data.held_out()
    curve = exit_curve(trained, held_out, [0.0, 0.5], DEPTH)
    assert curve.loops[:, 0].eq(DEPTH).all() and (curve.loops[:, 1] <= DEPTH).all()
    assert curve.accuracy[0] == read_json(tmp_path / "result.json")["accuracy"][-1]
    path = trajectory(trained, alike(held_out, 2).inputs, 3)
    assert radius(*loop_at(trained, path.states[-1])).isfinite().all()
    assert Walks().walk(open_run(tmp_path, "x"), "abb", DEPTH).truth == "bba§"


def test_a_name_is_given_once(monkeypatch):
    monkeypatch.setattr(Norm, "kinds", {**Norm.kinds})
    with pytest.raises(TypeError, match="LayerNorm is already defined in looped_lib.models.norms: give the class another name"):
        type("LayerNorm", (Norm,), {"__module__": "mine"})
    again = type("MaxNorm", (Norm, torch.nn.Identity), {"__module__": "own_parts"})  # a cell that is run again
    assert isinstance(make_norm("MaxNorm", 4), again)


def test_names_of_terms_are_columns_of_their_own():
    for name in ("loss", "a b", "n_loops"):
        with pytest.raises(ConfigError, match=f"ExperimentConfig.terms must have names of letters, .*, got '{name}'"):
            own(terms={name: NextChange()})
    with pytest.raises(ConfigError, match="ExperimentConfig.terms must be a mapping of names to penalties"):
        own(terms=[NextChange()])


def test_protocols_tell_what_a_model_offers():
    small = ModelConfig(d_model=8, n_heads=2, d_ff=8).build()
    assert isinstance(small, Cached) and isinstance(own().model.build(), Trainable)
    assert not isinstance(own().model.build(), Cached) and not isinstance(torch.nn.Linear(1, 1), Looped)


def test_a_task_says_what_is_wrong_with_it(monkeypatch):
    monkeypatch.setattr(Task, "kinds", {**Task.kinds})

    class Twice(Reverse):
        characters = "aab"

    with pytest.raises(ConfigError, match="Twice.characters must be different"):
        Twice()
    with pytest.raises(ValueError, match="there seem to be 62 different problems, fewer than 63"):
        Reverse().generate(63, 0)


def test_older_configs_have_the_last_change_in_their_penalty(tmp_path):
    old = {"weight": 0.1, "onset": 7, "l2_weight": 0.2, "last_change": "relative_squared"}
    found = from_dict(ExperimentConfig, {"penalty": old})
    assert to_dict(found)["terms"] == {"l2": {"kind": "RelativeChange", "weight": 0.2, "onset": 7}}
    assert found.penalty.weight == 0.1 and from_dict(ExperimentConfig, {"penalty": old | {"l2_weight": 0.0}}).terms == {}
    write_json(tmp_path / "config.json", {"penalty": old | {"last_change": "l2"}})
    assert read_config(tmp_path).terms["l2"].__class__.__name__ == "LastChange"

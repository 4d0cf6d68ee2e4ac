"""The explorer shows the numbers of the run it is asked for, every control changes the figure, every mistake is one message."""

import html
import json
import re
import shutil

import numpy as np
import pytest
import torch
from other_model import OtherModel

from looped_lib.core.files import read_json
from looped_lib.dynamics.depth import depth_curve
from looped_lib.dynamics.pca import project
from looped_lib.dynamics.trajectory import trajectory
from looped_lib.runs.experiment import run_experiment
from looped_lib.studies import paper
from looped_lib.tasks.addition import CHARACTERS, Addition
from looped_lib.tasks.problems import from_texts
from looped_lib.widgets.explorer import Explorer, Run, Walks, find_runs, read_problem


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, config in paper.tour("smoke").items():
        if name != "random":
            run_experiment(config, root / "tour" / name, max_depth=8, progress=False)
    return root


@pytest.fixture
def root(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "runs")


@pytest.fixture
def explorer(root):
    return Explorer(root, max_loops=12)


@pytest.fixture
def walks(trained):
    walks = Walks()
    return walks, walks.run(trained / "tour" / "stars", "tour/stars")


def drawn(explorer):
    return explorer.figure.to_dict()["data"], explorer.figure.layout.title.text


def test_it_opens_on_the_first_run_and_a_held_out_problem(explorer):
    assert explorer.run.label == "tour/fixed" and len(explorer.run.options) == 2 and explorer.message.value == ""
    assert explorer.walk.loops.tolist() == list(range(13)) and explorer.walk.problem == explorer.held_out.options[1][1]
    assert explorer.figure in explorer.children[-1].children
    np.testing.assert_allclose(explorer.figure.data[0].x, explorer.walk.coordinates[:, 0])


@pytest.mark.parametrize("problem", ["12+34=", "99+1"])
@pytest.mark.parametrize("token", [None, 3])
def test_a_walk_is_what_the_model_does(walks, problem, token):
    walks, run = walks
    walk = walks.walk(run, problem, 9, (2, 9), token, components=3)
    prompt, answer = problem.removesuffix("=") + "=", {"1": " 64", "9": " 001"}[problem[0]]
    problems = from_texts([(prompt, answer)], CHARACTERS)
    path = trajectory(run.model, problems.inputs, 9)
    part = project(path.between(2, 9), 3, token)
    np.testing.assert_allclose(walk.coordinates, part.coordinates[:, 0], atol=1e-5)
    np.testing.assert_allclose(walk.explained, part.explained, atol=1e-6)
    moved = path.residual[2:, 0].mean(-1) if token is None else path.residual[2:, 0, token]
    np.testing.assert_allclose(walk.residual, moved, rtol=1e-5)
    with torch.no_grad():
        predicted = [run.model(problems.inputs, t)[0, len(prompt) - 1 :].argmax(-1) for t in range(2, 10)]
    assert [from_ids(p) for p in predicted] == list(walk.says) and walk.problem == prompt and walk.truth == answer + "§"
    assert walk.point == ("whole state" if token is None else f"state of position 3, {prompt[3]!r}")


def from_ids(ids):
    return "".join("0123456789+= Ʌ§"[i] for i in ids)


def test_accuracy_is_read_from_the_runs_result(walks, trained):
    _, run = walks
    result = read_json(trained / "tour" / "stars" / "result.json")
    assert run.depths.tolist() == result["depths"] and run.accuracy.tolist() == result["accuracy"]


def test_an_answer_is_right_where_greedy_decoding_is(walks):
    """A model that has learned one problem by heart, so that there is something right."""
    _, run = walks
    problems = from_texts([("12+34=", " 64")], CHARACTERS)
    model = run.model.train()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(30):
        torch.nn.functional.cross_entropy(model(problems.inputs, 2)[0, 5:], problems.ids[0, 6:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    learned = Run("learned", model.eval(), 16)
    walk = Walks().walk(learned, "12+34=", 8)
    right = [said == walk.truth for said in walk.says]
    assert right == depth_curve(model, problems, 8).correct[0].tolist() and any(right) and not all(right)


def test_it_works_on_any_model_with_embed_step_and_readout():
    walk = Walks().walk(Run("other", OtherModel(), 64), "1234+5678=", 7, components=3)
    assert walk.coordinates.shape == (8, 3) and walk.truth == " 2196§" and len(walk.says) == 8 and len(walk.depths) == 0


CONTROLS = {
    "run": lambda e: setattr(e.run, "label", "tour/stars"),
    "held_out": lambda e: setattr(e.held_out, "index", 3),
    "problem": lambda e: setattr(e.problem, "value", " 8 + 77"),
    "token": lambda e: setattr(e.token, "value", 2),
    "depths": lambda e: setattr(e.depths, "value", (1, 8)),
    "loops": lambda e: setattr(e.loops, "value", 20),
    "components": lambda e: setattr(e.components, "value", 3),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_every_control_changes_the_figure(explorer, control):
    before, walk = drawn(explorer), explorer.walk
    CONTROLS[control](explorer)
    assert "alert" not in explorer.message.value and explorer.walk is not walk and drawn(explorer)[0] != before[0]
    assert explorer.loop.min == explorer.play.min == explorer.walk.loops[0]
    assert explorer.loop.max == explorer.play.max == explorer.walk.loops[-1] and explorer.depths.max == explorer.loops.value
    shown = html.unescape(explorer.figure.layout.title.text)
    assert f"{explorer.run.label} · {explorer.problem.value} · {explorer.walk.point}" in shown


def test_controls_go_together(explorer):
    explorer.token.value = 2
    explorer.problem.value = "8+77"
    assert explorer.problem.value == "8+77=" and explorer.held_out.value == "" and explorer.token.value == 2
    assert [label for label, _ in explorer.token.options][:3] == ["whole state", "position 0, '8'", "position 1, '+'"]
    explorer.token.value = 7
    explorer.problem.value = "1+2="
    assert explorer.token.value is None and explorer.walk.point == "whole state"  # that problem has no position 7
    explorer.held_out.index = 4
    assert explorer.problem.value == explorer.held_out.value == explorer.walk.problem
    explorer.run.label = "tour/stars"
    assert explorer.problem.value == explorer.walk.problem == explorer.held_out.options[4][1]


def test_a_loop_moves_markers_and_title_only(explorer):
    for components in (2, 3):
        explorer.components.value = components
        before, title = drawn(explorer)
        explorer.loop.value = 5 + components
        after, moved = drawn(explorer)
        assert [a != b for a, b in zip(after, before, strict=True)].count(True) == 3 and title != moved
        assert after[1 if components == 2 else 3]["x"] == [explorer.walk.coordinates[5 + components, 0]]


def test_the_loop_stays_in_the_range_that_is_shown(explorer):
    explorer.loop.value = 12
    explorer.depths.value = (2, 6)
    assert explorer.loop.value == 6 and explorer.figure.layout.title.text.startswith("after 6 loops")


def test_another_view_runs_no_loop(explorer, monkeypatch):
    run = explorer._walks.run(explorer.run.value, explorer.run.label)
    monkeypatch.setattr(type(run.model), "embed", lambda *args: pytest.fail("looped again"))
    for control in ("token", "depths", "components"):
        CONTROLS[control](explorer)
        assert explorer.message.value == ""


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def checkpoint(run):
    return max((run / "checkpoints").iterdir())


MISTAKES = {
    "no checkpoint": (lambda e, run: shutil.rmtree(run / "checkpoints"), "stars is finished, but its checkpoint is not there"),
    "half a config": (lambda e, run: cut(run / "config.json"), "config.json: not JSON"),
    "half a result": (lambda e, run: cut(run / "result.json"), "result.json: not JSON .*delete .*result.json to measure again"),
    "another result": (
        lambda e, run: (run / "result.json").write_text("{}"),
        "result.json has no depths, accuracy and config .*delete it",
    ),
    "unknown field": (lambda e, run: (run / "config.json").write_text('{"sead": 1}'), "has no field sead"),
    "half a checkpoint": (lambda e, run: cut(checkpoint(run) / "model.safetensors"), "model.safetensors is damaged"),
    "no weights": (lambda e, run: (checkpoint(run) / "model.safetensors").unlink(), "model.safetensors cannot be read"),
    "no folder": (lambda e, run: shutil.rmtree(run), "config.json is missing: .* is not the folder of a run"),
    "letters": (lambda e, run: setattr(e.problem, "value", "12a+3="), "character 'a' at 2 is not one of"),
    "other digits": (lambda e, run: setattr(e.problem, "value", "١+2"), "is not one of"),
    "no sum": (lambda e, run: setattr(e.problem, "value", "1+2+3="), "write two whole numbers and a plus, such as 1234\\+5678="),
    "no operand": (lambda e, run: setattr(e.problem, "value", "12+="), "write two whole numbers and a plus"),
    "an answer": (lambda e, run: setattr(e.problem, "value", "1+2=3"), "write two whole numbers and a plus"),
    "too long": (
        lambda e, run: setattr(e.problem, "value", "123456+123456="),
        "longer than the 16 characters that this model reads",
    ),
    "far too long": (lambda e, run: setattr(e.problem, "value", "9" * 5000 + "+1="), "longer than the 16 characters"),
    "depth 0": (lambda e, run: setattr(e.loops, "value", 0), "the deepest at least 1, got 0"),
    "depth -3": (lambda e, run: setattr(e.loops, "value", -3), "the deepest at least 1, got -3"),
    "beyond memory": (lambda e, run: setattr(e.loops, "value", 10**8), "GB, more than the 0.3 GB allowed"),
    "beyond numbers": (lambda e, run: setattr(e.loops, "value", 10**30), "GB, more than the 0.3 GB allowed"),
    "one loop": (lambda e, run: setattr(e.depths, "value", (3, 3)), "2 components need more than 2 states"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_the_figure_stays(explorer, root, mistake):
    make, expected = MISTAKES[mistake]
    before = drawn(explorer)
    make(explorer, root / "tour" / "stars")
    explorer.run.label = "tour/stars"
    message = html.unescape(explorer.message.value)
    assert re.search(expected, message) and message.count("<p") == 1 and "Traceback" not in message
    assert drawn(explorer) == before
    explorer.loop.value = 4  # the figure that stayed still works
    assert explorer.figure.layout.title.text.startswith("after 4 loops")
    explorer.loops.value, explorer.problem.value, explorer.run.label = 9, "1+2=", "tour/fixed"
    assert "trained on numbers of 2 digits" in explorer.message.value and explorer.walk.problem == "1+2="


def test_states_that_overflow_are_named(explorer):
    run = explorer._walks.run(explorer.run.value, explorer.run.label)
    run.model.layers[0].mlp.sublayer.register_forward_hook(lambda module, args, out: out * 1e30)
    explorer.problem.value = "1+2="
    assert "is not finite from loop" in explorer.message.value


def test_files_that_change_are_read_again(explorer, root):
    path = root / "tour" / "fixed" / "result.json"
    values = {name: [0.25, None] for name in ("accuracy", "state_norm", "residual")}
    path.write_text(json.dumps(read_json(path) | {"depths": [0, 1], **values}))
    explorer.token.value = 1
    assert explorer.walk.accuracy[0] == 0.25 and np.isnan(explorer.walk.accuracy[1]) and explorer.message.value == ""
    path.unlink()
    explorer.token.value = 2
    assert "no result.json" in explorer.figure.layout.annotations[-1].text


def test_a_run_whose_data_are_elsewhere_takes_typed_problems(root):
    run = root / "tour" / "fixed"
    config = read_json(run / "config.json")
    config["data"] |= {"train_file": "/nowhere/a.jsonl", "test_file": "/nowhere/b.jsonl"}
    (run / "config.json").write_text(json.dumps(config))
    for state in run.glob("checkpoints/*/state.json"):  # it says the same
        state.write_text(json.dumps(read_json(state) | {"config": config}))
    explorer = Explorer(run, 5)
    assert "write two whole numbers" in explorer.message.value and explorer.figure is None
    explorer.loop.value = 1
    explorer.problem.value = "12+34="
    assert explorer.message.value == "" and explorer.figure is not None and "not here" in explorer.held_out.options[0][0]


def test_no_runs_is_a_message(tmp_path):
    assert "no runs under" in Explorer(tmp_path).message.value and find_runs(tmp_path / "nowhere") == {}


def test_a_typed_problem_is_the_tasks_text():
    assert read_problem(Addition(), " 12 + 9 =", 16).texts() == ["12+9= 12§"]
    assert read_problem(Addition(), "007+5", 16).texts() == ["007+5= 21§"]
    assert read_problem(Addition(), "99+99=", 10).texts() == ["99+99= 891§"]  # reads all but the last character
    for problem in ("99+99=", "123456+1="):
        with pytest.raises(ValueError, match="longer than the 9 characters"):
            read_problem(Addition(), problem, 9)

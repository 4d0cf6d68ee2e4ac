"""The private names of other packages that the library uses are still there."""

from importlib import import_module
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch
from datasets import Dataset
from torch.utils.flop_counter import flop_registry

from looped_lib.core import compat


@pytest.mark.parametrize("name", compat.OVERRIDDEN)
def test_what_is_overridden_exists(name):
    module, _, owner = name.rpartition(".")
    found = getattr(import_module(module), owner)
    assert all(callable(getattr(found, method)) for method in compat.OVERRIDDEN[name])


def test_the_operators_of_a_product_are_seen(monkeypatch):
    class Seen(compat.dispatch_mode()):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            operators.append(compat.operator(func))
            return func(*args, **(kwargs or {}))

    operators = []
    with Seen():
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert operators[-1] in flop_registry


def test_a_figure_fills_the_width():
    figure = go.FigureWidget()
    compat.fill_width(figure)
    assert figure._config["responsive"] is True


def test_task_files_are_read_with_their_includes(tmp_path):
    (tmp_path / "base").write_text("task: a\nrepeats: 2\n")
    (tmp_path / "task.yaml").write_text(f"include: {tmp_path / 'base'}\ntask: b\n")
    assert compat.task_loader()(tmp_path / "task.yaml", resolve_func=False) == {"task": "b", "repeats": 2}


def test_tables_of_other_contents_have_other_fingerprints():
    a, b = (Dataset.from_dict({"x": [n]}) for n in (1, 2))
    assert compat.fingerprint(a) != compat.fingerprint(b)


def test_a_job_has_a_store(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert compat.process_store().compare_set("key", "", "mine") == b"mine"
    finally:
        torch.distributed.destroy_process_group()


def test_transformers_knows_a_sharded_model_by_this_name():
    mixin = import_module("transformers.distributed.mixin")
    model = torch.nn.Linear(1, 1)
    compat.keep_shards(model)
    (name,) = set(vars(model)) - set(vars(torch.nn.Linear(1, 1)))
    assert name in Path(mixin.__file__).read_text()

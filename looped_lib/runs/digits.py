"""Length generalisation: a finished run's accuracy by depth on operands with fewer or more digits than it was trained on.

looped-lib digits RUN_DIR...    writes RUN_DIR/digits.json = {"depths", "accuracy": {digits: one value per depth}}
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from looped_lib.config import ExperimentConfig
from looped_lib.core import project
from looped_lib.core.checks import ConfigError
from looped_lib.core.files import read_json, write_json
from looped_lib.dynamics.depth import DepthCurve, depth_curve
from looped_lib.runs.folders import read_config
from looped_lib.tasks.addition import Addition, generate_problems
from looped_lib.tasks.problems import Problems
from looped_lib.training.trainer import load_model

DIGITS = (2, 3, 4, 5, 6)
MAX_DEPTH = 100


def held_out_digits(task: Addition, digits: int, n: int) -> Problems:
    """`n` different problems with operands of exactly `digits` digits, none of them among the training problems of `task`.

    Where the training problems are generated and have as many digits, these are the held-out ones. ValueError if there are not
    enough.
    """
    if not task.train_file:
        return generate_problems(digits, n, task.seed, skip=task.n_train if digits == task.digits else 0)
    trained, drawn = set(task.training().texts()), n
    while True:
        problems = generate_problems(digits, drawn, task.seed)
        free = [i for i, text in enumerate(problems.texts()) if text not in trained]
        if len(free) >= n:
            return problems[torch.tensor(free[:n])]
        drawn += n - len(free)


def curves_by_digits(run_dir: str | Path, digits: Iterable[int], max_depth: int, n: int = 500) -> dict[int, DepthCurve]:
    """{digits: `depth_curve` of the run in `run_dir` on `n` such problems}. A model of max_len positions reads operands of up to
    (max_len - 4) // 3 digits; ValueError beyond."""
    task, model = _addition(run_dir).data, load_model(run_dir)
    return {d: depth_curve(model, held_out_digits(task, d, n), max_depth) for d in digits}


def record_digits(run_dir: str | Path) -> dict[str, Any]:
    """What `digits.json` of the run holds: DIGITS, as far as the model's positions go; measured first if it is not there."""
    path, longest = Path(run_dir) / project.DIGITS, (_addition(run_dir).model.max_len - 4) // 3
    if path.exists():
        return read_json(path)
    curves = curves_by_digits(run_dir, [d for d in DIGITS if d <= longest], MAX_DEPTH)
    accuracy = {str(d): [float(a) for a in curve.accuracy] for d, curve in curves.items()}
    found = {"depths": list(range(MAX_DEPTH + 1)), "accuracy": accuracy}
    write_json(path, found)
    return found


def _addition(run_dir: str | Path) -> ExperimentConfig:
    config = read_config(run_dir)
    if not isinstance(config.data, Addition):
        raise ConfigError(f"{run_dir}: its task must be Addition to have numbers of digits, got {type(config.data).__name__}")
    return config


def main(arguments: list[str]) -> None:
    """Measure runs that are finished."""
    parser = argparse.ArgumentParser(prog="looped-lib digits", description="Accuracy on other numbers of digits")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    for run_dir in parser.parse_args(arguments).run_dirs:
        best = [f"{100 * max(a):.1f} % of {d} digits" for d, a in record_digits(run_dir)["accuracy"].items()]
        print(f"{run_dir}: best accuracy at any depth {', '.join(best)}")

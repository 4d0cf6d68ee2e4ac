"""Length generalisation: a finished run's accuracy by depth on operands with fewer or more digits than it was trained on."""

from collections.abc import Iterable
from pathlib import Path

import torch

from looped_lib.addition import Problems, generate_problems, load_jsonl
from looped_lib.config import DataConfig
from looped_lib.depth import DepthCurve, depth_curve
from looped_lib.runs import read_config
from looped_lib.training import load_model


def held_out_digits(config: DataConfig, digits: int, n: int) -> Problems:
    """`n` different problems with operands of exactly `digits` digits, none of them among the training problems of `config`.

    Where the training problems are generated and have as many digits, these are the held-out ones. ValueError if there are not
    enough.
    """
    if not config.train_file:
        return generate_problems(digits, n, config.seed, skip=config.n_train if digits == config.digits else 0)
    trained, drawn = set(load_jsonl(config.train_file).texts()), n
    while True:
        problems = generate_problems(digits, drawn, config.seed)
        free = [i for i, text in enumerate(problems.texts()) if text not in trained]
        if len(free) >= n:
            return problems[torch.tensor(free[:n])]
        drawn += n - len(free)


def curves_by_digits(run_dir: str | Path, digits: Iterable[int], max_depth: int, n: int = 500) -> dict[int, DepthCurve]:
    """{digits: `depth_curve` of the run in `run_dir` on `n` such problems}. A model of max_len positions reads operands of up to
    (max_len - 4) // 3 digits; ValueError beyond."""
    config, model = read_config(run_dir), load_model(run_dir)
    return {d: depth_curve(model, held_out_digits(config.data, d, n), max_depth) for d in digits}

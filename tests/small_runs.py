"""Small experiments that the tests train, and how two runs are compared."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from looped_lib.config import CarryConfig, ExperimentConfig, ModelConfig, PenaltyConfig, TrainingConfig, to_dict
from looped_lib.regularizers import LastChange
from looped_lib.samplers import UniformLoops
from looped_lib.tasks.addition import CHARACTERS, Addition
from looped_lib.tasks.problems import Problems, from_texts
from looped_lib.training import checkpoints


def tiny(**changes) -> ExperimentConfig:
    """Every mechanism at once: dropout, random loops, penalty with persistent vectors, L2, carried rows, accumulation."""
    config = ExperimentConfig(
        model=ModelConfig(d_model=16, n_heads=2, d_ff=32, max_len=16),
        loops=UniformLoops(low=1, high=3),
        penalty=PenaltyConfig(weight=0.1, quantity="spectral_radius", persistent=True, onset=3, share=0.5),
        terms={"l2": LastChange(weight=0.01, onset=3)},
        carry=CarryConfig(share=0.5, max_loops=5, onset=2),
        data=Addition(digits=2, n_train=100, n_test=10),
        training=TrainingConfig(
            steps=24, batch_size=16, accumulation=2, lr=1e-2, warmup_steps=3, log_every=3, checkpoint_every=4
        ),
    )
    return replace(config, **changes)


def plain(accumulation: int = 1, **training) -> ExperimentConfig:
    """Without dropout or penalty, where splitting the batch must not change the gradient."""
    config = tiny(penalty=PenaltyConfig(), terms={}, carry=CarryConfig(), model=replace(tiny().model, dropout=0.0))
    return replace(config, training=replace(config.training, accumulation=accumulation, steps=4, **training))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return checkpoints.latest(run_dir / "checkpoints").weights


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a), [k for k in a if not torch.equal(a[k], b[k])]


def train_by_command(config: ExperimentConfig, run_dir: Path, *launcher: str) -> None:
    """As a user starts it: in an interpreter of its own, without the annotation checks of `conftest`."""
    config_path = run_dir.with_suffix(".json")
    config_path.write_text(json.dumps(to_dict(config)))
    command = [sys.executable, *launcher, "-m", "looped_lib.training", config_path, run_dir]
    done = subprocess.run(command, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()


def train_in_two_processes(config: ExperimentConfig, run_dir: Path) -> None:
    train_by_command(config, run_dir, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def mixed_problems() -> Problems:
    """Operands of one and two digits, so that lengths and prompt lengths differ; some twice."""
    pairs = [(3, 4), (9, 9), (12, 34), (99, 1), (12, 35), (3, 5), (57, 60), (12, 34), (7, 95), (10, 10)] * 3
    pairs += [(i, 2 * i) for i in range(40)]
    return from_texts([(f"{a}+{b}=", " " + str(a + b)[::-1]) for a, b in pairs], CHARACTERS)

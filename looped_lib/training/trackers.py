"""The lines of metrics.jsonl for TensorBoard, Weights & Biases, MLflow or trackio, by transformers' own callbacks.

All but TensorBoard are to be installed, and set up, by the user. TensorBoard's files are in RUN/tensorboard.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from looped_lib.core.checks import ConfigError


def check_installed(config: Any) -> None:
    """ConfigError if something in the field `report_to` is not installed."""
    if not config.report_to:
        return
    from transformers.integrations import get_available_reporting_integrations  # slow to import, and only needed here

    if missing := [name for name in config.report_to if name not in get_available_reporting_integrations()]:
        said = f"{type(config).__name__}.report_to: {', '.join(missing)} is not installed: pip install {' '.join(missing)}"
        raise ConfigError(said)


def set_places(run_dir: Path) -> None:
    """Where trackers of this process write."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run_dir / "tensorboard")
    os.environ.setdefault("WANDB_DIR", str(run_dir))


def run_name(run_dir: Path) -> str:
    """What trackers call a run."""
    return f"{run_dir.parent.name}/{run_dir.name}"


@contextmanager
def reporting(names: Collection[str], run_dir: Path, steps: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """A function that gives a line of metrics.jsonl to the trackers, which are told of begin and end."""
    if not names:
        yield lambda line: None
        return
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    set_places(run_dir)
    arguments = TrainingArguments(output_dir=str(run_dir), report_to=list(names), run_name=run_name(run_dir), use_cpu=True)
    state, control = TrainerState(max_steps=steps), TrainerControl()
    callbacks = [kind() for kind in get_reporting_integration_callbacks(list(names))]

    def tell(event: str, **what: Any) -> None:
        for callback in callbacks:
            getattr(callback, event)(arguments, state, control, model=None, **what)

    def report(line: dict[str, float]) -> None:
        state.global_step = int(line["step"])
        tell("on_log", logs={name: value for name, value in line.items() if name != "step"})

    tell("on_train_begin")
    try:
        yield report
    finally:
        tell("on_train_end")

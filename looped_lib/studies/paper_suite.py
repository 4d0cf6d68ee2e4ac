"""The paper's addition study on one GPU, by one command, in as many sittings as it takes.

    python -m looped_lib paper --minutes 9.5 --archive results.tar.gz      (or: make paper)

makes runs/paper/STUDY/RUN/, the most telling runs first, several at a time where one does not fill the GPU. When the time is up
the runs at work write a checkpoint and end; the same command goes on. A run that is finished, here or in runs/recorded/paper,
is not made again, nor is one that failed, without `--retry`. What is small of the finished runs goes into the archive, which
`looped-lib unpack` writes into runs/recorded. On a GPU it first measures the machine
(`looped_lib.bench.gpu`), once.

It needs no installation: a copy of the project's folder, torch, numpy, scipy, pandas, safetensors, tqdm and jaxtyping (and
transformers for Ouro's timings) will do. On a GPU Phi is compiled (`--eager`: not) and products are in bfloat16 (`--precision
tf32`: in TF32), which is how a run is computed, not what it is.
"""

import argparse
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from looped_lib.config import ExperimentConfig, Precision
from looped_lib.core.files import read_json, write_json
from looped_lib.core.project import FAILED, RECORDED, find_root
from looped_lib.runs.archive import TIMINGS, pack
from looped_lib.runs.experiment import run_experiment
from looped_lib.studies.beyond import recipe_study
from looped_lib.studies.paper import jacobian_study, norm_study, random_loop_study
from looped_lib.studies.sizes import PRESETS, Configs

FOLDER = "paper"  # under runs/
MAX_DEPTH = 200
TIMINGS_SECONDS = 170  # at most, and at most a third of the time there is
CLOSING_SECONDS = 25  # for checkpoints and the archive, of the time there is
BYTES_PER_TOKEN_AND_LOOP = 20_000  # kept for the backward pass at width 512 in bfloat16; twice that in float32
ALL_FAILED = 4  # runs
VARIANTS = ("l2", "log_normal", "prelude", "coda", "poisson", "prelude_coda", "uniform")  # of section 4.2
SEEDS = (0, 1, 2)


def suite(size: str = "paper") -> Configs:
    """{study/run: experiment}, the most telling first.

    STARS and random loops, where the norm stands, what does not hold by the paper (uniform loops last, at five times the cost),
    recipes that hold, the other seeds; then the other placement, types, estimators.
    """
    runs: Configs = {}

    def add(study: str, configs: Configs) -> None:
        for name, config in configs.items():
            if config not in runs.values():
                runs[f"{study}/{name}"] = config

    first, *others = SEEDS
    for variant in ("public_code", "random", "public"):
        add("stars", jacobian_study(size, variant, seed=first))
    add("norms", norm_study(size, seed=first))
    for variant in VARIANTS:
        add("random_loops", random_loop_study(size, variant, seed=first))
    for recipe in ("diagonal_noise", "inject_carry"):
        add("recipes", recipe_study(size, recipe, seed=first))
    for seed in others:
        for variant in ("public_code", "random"):
            add("stars", jacobian_study(size, variant, seed=seed))
        add("recipes", recipe_study(size, "diagonal_noise", seed=seed))
    for seed in others:
        add("norms", norm_study(size, seed=seed))
        for variant in VARIANTS[:-1]:
            add("random_loops", random_loop_study(size, variant, seed=seed))
        add("stars", jacobian_study(size, "public", seed=seed))
    for seed in SEEDS:
        add("recipes", recipe_study(size, "carry", seed=seed))
        add("stars", jacobian_study(size, "squared_fro", seed=seed))
        add("recipes", recipe_study(size, "inject_carry", seed=seed))
        for kind in ("RMSNorm", "SimpleNorm", "DeepNorm"):
            add("norms", norm_study(size, norm_type=kind, seed=seed))
        for variant in VARIANTS:
            add("random_loops", random_loop_study(size, variant, norm_placement="sandwich_dual", seed=seed))
        add("random_loops", random_loop_study(size, "uniform", seed=seed))
    return runs


@dataclass(frozen=True)
class Machine:
    """How runs are computed here."""

    precision: Precision
    compile: bool
    jobs: int
    """Runs at a time."""

    @classmethod
    def here(cls, precision: Precision | None, jobs: int, eager: bool, deepest: ExperimentConfig) -> "Machine":
        """On a GPU bfloat16 and as many runs as its memory holds, but not more than half of the cores; else float32, a run a
        core.

        `precision` and `jobs` (if not 0) are taken as given; memory is that of the experiment with the deepest loops.
        """
        cores = os.cpu_count() or 1
        if not torch.cuda.is_available():
            return cls(precision or "fp32", False, jobs or cores)
        precision = precision or "bf16"
        tokens = deepest.training.batch_size * 16 * deepest.model.d_model / 512
        needed = BYTES_PER_TOKEN_AND_LOOP * (1 if precision == "bf16" else 2) * tokens * int(deepest.loops.support[-1]) + 2e9
        fit = int(0.95 * torch.cuda.get_device_properties(0).total_memory / needed)
        return cls(precision, not eager, jobs or max(1, min(fit, cores // 2)))

    def of(self, config: ExperimentConfig) -> ExperimentConfig:
        """The experiment as it is computed here."""
        return replace(config, training=replace(config.training, precision=self.precision, compile=self.compile))


def finished(name: str, folder: Path) -> bool:
    """Whether a run is finished, in `folder` (of runs/) or among the recorded ones."""
    return any((place / name / "result.json").exists() for place in (folder, folder.parent / RECORDED / folder.name))


def make(runs: Configs, folder: Path, machine: Machine, deadline: float, max_depth: int, retry: bool = False) -> dict[str, str]:
    """Make what is left of `runs` in `folder`/<run>/ until `deadline` (of time.monotonic); returns how each stands.

    That is done, failed, stopped (with a checkpoint) or waiting. Runs that failed before are left, but for `retry`. If nothing
    but failures comes of the first ALL_FAILED, the machine cannot do it, and no more are begun.
    """

    def before(name: str) -> str:
        failed = (folder / name / FAILED).exists() and not retry
        return "done" if finished(name, folder) else "failed" if failed else "waiting"

    states = {name: before(name) for name in runs}
    ended: list[str] = []
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    working: dict[str, multiprocessing.Process] = {}
    try:
        while time.monotonic() < deadline:
            broken = len(ended) >= ALL_FAILED and set(ended) == {"failed"}
            room = 0 if broken else machine.jobs - len(working)
            for name in [n for n, state in states.items() if state == "waiting"][:room]:
                process = context.Process(target=one_run, args=(machine.of(runs[name]), folder / name, max_depth, machine.jobs))
                process.start()
                working[name], states[name] = process, "working"
            if not working:
                break
            multiprocessing.connection.wait(
                [p.sentinel for p in working.values()], max(0.0, min(5.0, deadline - time.monotonic()))
            )
            for name in [n for n, p in working.items() if not p.is_alive()]:
                states[name] = _ended(name, folder, working.pop(name))
                ended.append(states[name])
    finally:
        for process in working.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGINT)  # the trainer writes a checkpoint
        patience = time.monotonic() + CLOSING_SECONDS * 0.8
        for name, process in working.items():
            process.join(max(0.0, patience - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            states[name] = "done" if finished(name, folder) else "stopped"
    return states


def one_run(config: ExperimentConfig, folder: Path, max_depth: int, jobs: int) -> None:
    """One run in this process, on its share of the cores. What goes wrong is in failed.json; an interrupt leaves a checkpoint."""
    os.setsid()  # Ctrl-C in a terminal is the parent's, which then interrupts this process once
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    (folder / FAILED).unlink(missing_ok=True)
    try:
        run_experiment(config, folder, max_depth, progress=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as e:  # whatever it is, it is this run's
        write_json(folder / FAILED, {"cell": None, "error": f"{type(e).__name__}: {e}"})
        raise


def _ended(name: str, folder: Path, process: multiprocessing.Process) -> str:
    if not finished(name, folder):
        why = read_json(folder / name / FAILED)["error"] if (folder / name / FAILED).exists() else f"status {process.exitcode}"
        print(f"{name}: failed: {why}", flush=True)
        return "failed"
    result = read_json(folder / name / "result.json")
    shown = [f"{100 * a:.1f} % at {d}" for d, a in zip(result["depths"], result["accuracy"], strict=True) if d in (4, 20, 100)]
    print(f"{name}: {', '.join(shown)} loops, {sum(result['seconds'].values()):.0f} s", flush=True)
    return "done"


def _measure_machine(path: Path, seconds: float) -> None:
    """Timings of the idle GPU, in a process of their own: what they hold of it must not stay. Parts done in time are kept."""
    command = [sys.executable, "-m", "looped_lib", "_gpu", str(path)]
    try:
        subprocess.run(command, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"timings: stopped after {seconds:.0f} s", flush=True)


def main(arguments: list[str]) -> int:
    """Make the runs; returns the exit status: 0, or 3 if a run failed."""
    parser = argparse.ArgumentParser(prog="looped-lib paper", description="The paper's runs on one GPU")
    parser.add_argument("--minutes", type=float, default=9.5, help="how long this sitting may take (default: 9.5)")
    parser.add_argument("--archive", type=Path, help="of the results (default: runs/paper.tar.gz)")
    parser.add_argument("--size", default="paper", choices=PRESETS, help="other sizes try the command out")
    parser.add_argument("--only", default="", metavar="TEXT", help="runs with this in their names (stars/, seed0)")
    parser.add_argument("--precision", choices=get_args(Precision), help="default: bf16 on a GPU, fp32 else")
    parser.add_argument("--eager", action="store_true", help="do not compile on a GPU")
    parser.add_argument("--retry", action="store_true", help="make again what failed before")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time (default: what fits)")
    parser.add_argument("--max-depth", type=int, default=MAX_DEPTH, help=f"deepest loop count measured (default: {MAX_DEPTH})")
    parser.add_argument("--no-timings", action="store_true", help="do not measure the machine first")
    args = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * args.minutes - CLOSING_SECONDS
    root = find_root()
    # Loop counts differ from step to step, and so does what is held: fixed segments would leave gaps.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    folder = root / "runs" / (FOLDER if args.size == "paper" else f"{FOLDER}_{args.size}")
    runs = {name: config for name, config in suite(args.size).items() if args.only in name}
    if not runs:
        parser.error(f"--only {args.only}: no run has this in its name; there are {', '.join(suite(args.size))}")
    if torch.cuda.is_available() and not args.no_timings and not (folder / TIMINGS).exists():
        _measure_machine(folder / TIMINGS, min(TIMINGS_SECONDS, 20 * args.minutes))
    machine = Machine.here(args.precision, args.jobs, args.eager, max(runs.values(), key=lambda c: c.loops.support[-1]))
    print(f"{len(runs)} runs, {machine.jobs} at a time, {machine.precision}", flush=True)
    states = {}
    try:
        states = make(runs, folder, machine, deadline, args.max_depth, args.retry)
    finally:
        archive = args.archive or folder.with_suffix(".tar.gz")
        print(f"{archive}: {len(pack(folder, archive, root))} files", flush=True)
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    print(", ".join(f"{n} {state}" for state, n in counts.items()), flush=True)
    return 3 if "failed" in counts else 0

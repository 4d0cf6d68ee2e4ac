"""One training loop for every experiment: any model, task, loop counts and penalties, carried states.

    looped-lib train CONFIG.json RUN_DIR
    torchrun --nproc_per_node 2 -m looped_lib.training CONFIG.json RUN_DIR

The loss is that of `objective`, with the cross-entropy a mean over the answer tokens of the batch.
Everything random is a pure function of (seed, step): batches, loop counts, dropout and probe vectors. A run therefore resumes
from weights, moments and a step number to bit-identical results, wherever it was killed: on the CPU, with as many threads, which
sum in another order when they are more or fewer. An interrupt waits for the end of the step (`core.interrupts`).

Nothing in a step waits for the device: losses stay tensors until the line in metrics.jsonl that reports them.
"""

import argparse
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from looped_lib.config import ConfigError, ExperimentConfig, TrainingConfig, to_dict
from looped_lib.core import checks, streams
from looped_lib.core.errors import work
from looped_lib.core.files import holding
from looped_lib.core.interrupts import deferred
from looped_lib.core.project import CHECKPOINTS, METRICS, RESULT
from looped_lib.models.protocols import Trainable
from looped_lib.tasks.problems import IGNORE
from looped_lib.training import checkpoints, folder, origins, trackers
from looped_lib.training.batches import Batches
from looped_lib.training.carry import Carry
from looped_lib.training.memory import keeping_freed_memory
from looped_lib.training.metrics import MetricsLog
from looped_lib.training.objective import Objective, Terms
from looped_lib.training.precision import own_random_numbers, tf32_products
from looped_lib.training.processes import Agreement, Processes, run_job


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up to `lr`, then a cosine to `lr_end * lr` at the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * (config.lr_end + (1 - config.lr_end) * 0.5 * (1 + math.cos(math.pi * progress)))


def train(config: ExperimentConfig, run_dir: str | Path, progress: bool = True) -> Trainable:
    """Train the model of `config` and return it, in evaluation mode.

    `run_dir` gets config.json, metrics.jsonl and checkpoints/. If it holds a checkpoint of the same config the run goes on from
    there; of another config, ConfigError; finished and without one, FileNotFoundError. An interrupt (SIGINT, SIGTERM) ends the
    step, writes a checkpoint and goes on its way. FloatingPointError on a non-finite loss names the step, its depth and the last
    good checkpoint. Equal configs end in equal weights on the CPU, with as many threads.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return Trainer(config, Path(run_dir), progress).run()


class Trainer:
    """State of one run: model, optimiser, carried rows, position."""

    def __init__(self, config: ExperimentConfig, run_dir: Path | None = None, progress: bool = False):
        """Nothing is written yet; single steps need no folder. ConfigError if `config` cannot be trained, or not in `run_dir`."""
        self.config, self.run_dir, self.progress = config, run_dir, progress
        self.processes = Processes.from_environment()
        self.rank, self.world, self.device = self.processes.rank, self.processes.world, self.processes.device
        if run_dir is not None:
            folder.check(run_dir, config)  # before the work
        c = config.training
        trackers.check_installed(c)
        if c.batch_size % (self.world * c.accumulation):
            raise ConfigError(
                f"TrainingConfig.batch_size must be a multiple of processes x accumulation ({self.world} x {c.accumulation}), "
                f"got {c.batch_size}"
            )
        self.problems = config.data.training().to(self.device)
        if self.problems.inputs.shape[1] > config.model.max_len:
            raise ConfigError(
                f"{type(config.model).__name__}.max_len must be at least {self.problems.inputs.shape[1]}, the longest problem, "
                f"got {config.model.max_len}"
            )
        if config.model.vocab_size < (characters := len(config.data.alphabet)):
            checks.fail(config.model, "vocab_size", f"at least {characters}, the characters of {type(config.data).__name__}")
        with own_random_numbers(self.device):
            torch.manual_seed(config.seed)
            self.model = config.model.build().to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, fused=True
        )
        self.objective = Objective(self.model, config)
        # Truncated gradients leave out what comes before the loops (see `objective`).
        distributed = {"find_unused_parameters": c.backprop_loops > 0}
        self.module = DistributedDataParallel(self.objective, **distributed) if self.world > 1 else self.objective
        self.part_rows = c.batch_size // self.world // c.accumulation
        self.carries = [Carry(config.carry, self.part_rows) for _ in range(c.accumulation)]
        self.batches = Batches(c, len(self.problems), config.seed, self.device)
        self.labels = self.problems.labels
        self.step, self.saved, self.began = 0, -1, None  # the last: what is recorded of another run's checkpoint that it began at

    def run(self) -> Trainable:
        """Claim the folder and take all steps that are left. Busy if another process trains there."""
        if self.run_dir is None:
            raise ValueError("a run needs a folder: Trainer(config, run_dir)")
        alone = holding(self.run_dir) if self.processes.first else nullcontext()
        products = tf32_products(self.config.training.precision == "tf32")
        with alone, products, keeping_freed_memory(), own_random_numbers(self.device):
            self.resume()
            if self.processes.first:
                folder.claim(self.run_dir, self.config)
            self.processes.wait()
            self.steps_left()
            if self.processes.first:
                checkpoints.keep_newest(self.run_dir / CHECKPOINTS, 1)
            return self.model.eval()

    def steps_left(self) -> None:
        """All steps to the last, or to the one in which an interrupt came; then a checkpoint."""
        self.model.train()
        c, agreement, agreed = self.config.training, Agreement(self.world), 0
        shown = self.progress and self.processes.first and self.step < c.steps
        told = trackers.reporting(c.report_to if self.processes.first else (), self.run_dir, c.steps)
        with deferred() as interrupt, told as report:
            log = MetricsLog(self.run_dir / METRICS, self.step, c.log_every, self.processes.first, report)
            with tqdm(total=c.steps, initial=self.step, desc=self.run_dir.name, disable=not shown, unit="step") as bar:
                while self.step < c.steps and not agreed:
                    log.add(self.step, self.train_step())
                    self.step += 1
                    if agreed := agreement.greatest(interrupt.signal):
                        interrupt.signal = agreed
                    ends = bool(agreed) or self.step == c.steps
                    saves = ends or bool(c.checkpoint_every) and self.step % c.checkpoint_every == 0
                    if saves or self.step % c.log_every == 0:
                        bar.set_postfix(self.flush(log), refresh=False)
                    if saves:
                        self.save()
                    bar.update()
            interrupt.message = f"stopped at step {self.step}; the same command goes on"

    def train_step(self) -> dict[str, Tensor | float]:
        """One optimiser step. Returns what happened, as tensors that nobody has waited for."""
        config, c = self.config, self.config.training
        lr = learning_rate(c, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(streams.seed_of(streams.DROPOUT, config.seed, self.step, self.rank))
        rows = self.batches.rows(self.step)
        depths = config.loops.sample(config.seed, self.step, c.batch_size if c.per_sequence_loops else None)
        mine = slice(self.rank * self.part_rows * c.accumulation, (self.rank + 1) * self.part_rows * c.accumulation)
        parts = rows[mine].split(self.part_rows)
        # Mean over the answer tokens of the whole batch, so that neither the number of processes nor accumulation changes the
        # gradient (DDP averages over processes: hence `world`). Carried rows may hold a few tokens more or fewer than drawn.
        scale = self.world / (self.labels[rows] != IGNORE).sum()
        weights = self.objective.weights(self.step)
        sums: dict[str, Tensor | float] = dict.fromkeys(("loss", *weights), 0.0)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            n, deepest = self.part_depths(depths, mine.start + i * self.part_rows)
            with nullcontext() if last or self.world == 1 else self.module.no_sync():
                terms = self.part_terms(i, part, n, deepest)
                values = {name: v * scale if name == "ce" else v / len(parts) for name, v in terms.values.items()}
                values["loss"] = sum(weights[name] * value for name, value in values.items())
                values["loss"].backward()
            sums = {name: total + values[name].detach() for name, total in sums.items()}
        clip = c.grad_clip or math.inf
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**sums, "grad_norm": grad_norm, "lr": lr, "n_loops": float(np.mean(depths))}

    def part_terms(self, i: int, rows: Tensor, n_loops: int | Tensor, deepest: int) -> Terms:
        """The terms of the loss for part `i` of this rank's batch; its carry moves on."""
        config, carry = self.config, self.carries[i]
        inputs, labels, start = carry.start(self.step, self.problems.inputs[rows], self.labels[rows])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.training.precision == "bf16"):
            stream = self.rank * len(self.carries) + i
            terms = self.module(inputs, labels, n_loops, deepest, start, self.step, stream)
        if carry.rows:
            rng = streams.generator(streams.CARRY, config.seed, self.step, self.rank, i)
            limits = torch.from_numpy(rng.integers(1, config.carry.max_loops + 1, carry.rows)).to(self.device)
            carry.keep(self.step, deepest, inputs, labels, terms.last, terms.right, limits)
        return terms

    def part_depths(self, depths: int | np.ndarray, first: int) -> tuple[int | Tensor, int]:
        """Loop counts of the part that begins at row `first` of the batch, and the largest of them."""
        if isinstance(depths, int):
            return depths, depths
        part = depths[first : first + self.part_rows]
        return torch.from_numpy(part).to(self.device, non_blocking=True), int(part.max())

    def flush(self, log: MetricsLog) -> dict[str, Any]:
        """Write the metrics gathered so far; FloatingPointError if a loss among them is not finite."""
        bad = log.flush()
        if bad is not None:
            where = "no checkpoint was written before it"
            if self.saved >= 0:
                where = f"the last good checkpoint is {self.run_dir / CHECKPOINTS / checkpoints.folder_name(self.saved)}"
            raise FloatingPointError(f"the loss is {bad['loss']} at step {bad['step']}, depth {bad['n_loops']:g}; {where}")
        return log.summary

    def save(self) -> None:
        """Checkpoint the present step (rank 0; the others wait for it)."""
        training = self.processes.gather(self.own_state())
        names = {id(p): n for n, p in self.model.named_parameters()}
        for p, state in self.optimizer.state.items():
            training |= {f"adamw.{names[id(p)]}.{k}": v for k, v in state.items()}
        if self.processes.first and self.saved != self.step:
            state = {"config": to_dict(self.config), "world_size": self.world, "threads": torch.get_num_threads()}
            state |= {"start": self.began} if self.began else {}
            checkpoints.save(self.run_dir / CHECKPOINTS, self.step, self.model.state_dict(), training, state)
        self.saved = self.step
        self.processes.wait()

    def own_state(self) -> dict[str, Tensor]:
        """What this process alone knows, by names no other has: its carried rows and its persistent probe vectors."""
        carried = {f"carry.{self.rank}.{i}.{k}": v for i, c in enumerate(self.carries) for k, v in c.tensors.items()}
        return carried | {f"probe.{self.rank}.{k}": v for k, v in self.objective.jacobian.state().items()}

    def resume(self) -> None:
        """Go on from the newest checkpoint of this run, or else begin at another's if the config says so."""
        newest = folder.newest(self.run_dir)
        found = newest[0] if newest else origins.find(self.config)
        if found is None:
            return
        self.began = found.state.get("start") if newest else origins.describe(found)
        found.load_into(self.model)
        if newest is None and self.config.start.keep == "weights":
            return
        if (self.config.carry.share or self.config.penalty.persistent) and found.state.get("world_size") != self.world:
            raise ConfigError(f"{found.path} was saved by {found.state.get('world_size')} processes; resume with as many")
        if self.device.type == "cpu":
            found.warn_of_other_threads()
        for name, p in self.model.named_parameters():
            if state := self.restored(found, f"adamw.{name}."):
                self.optimizer.state[p] = state
        for i, carry in enumerate(self.carries):
            carry.tensors = self.restored(found, f"carry.{self.rank}.{i}.")
        self.objective.jacobian.load_state(self.restored(found, f"probe.{self.rank}."))
        self.step, self.saved = found.step, found.step if newest else -1

    def restored(self, found: checkpoints.Checkpoint, start: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `start`, without it, on this process's device."""
        return {k.removeprefix(start): v.to(self.device) for k, v in found.training.items() if k.startswith(start)}


def load_model(run_dir: str | Path) -> Trainable:
    """The model of a run's newest checkpoint, in evaluation mode on the CPU. FileNotFoundError if it has none."""
    run_dir = Path(run_dir)
    newest = folder.newest(run_dir)
    if newest is None and (run_dir / RESULT).exists():
        raise FileNotFoundError(folder.without_weights(run_dir))
    if newest is None:
        raise FileNotFoundError(f"{run_dir} has no checkpoint: train it first, or give the folder of a run (runs/<study>/<run>)")
    found, config = newest
    model = config.model.build()
    found.load_into(model)
    return model.eval()


def main(arguments: list[str]) -> None:
    """Train the experiment in a JSON file, under torchrun or alone."""
    parser = argparse.ArgumentParser(prog="looped-lib train", description="Train one experiment")
    parser.add_argument(
        "config", type=Path, help="ExperimentConfig as JSON (a run's config.json or a record's result.json will do)"
    )
    parser.add_argument("run_dir", type=Path, help="folder of the run")
    args = parser.parse_args(arguments)

    def job() -> Trainer:
        trainer = Trainer(folder.config_in(args.config), args.run_dir, progress=True)
        with work():
            trainer.run()
        return trainer

    run_job(job)

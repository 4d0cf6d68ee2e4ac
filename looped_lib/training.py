"""One training loop for every addition experiment: fixed or random loops, Jacobian or L2 penalty, carried states.

    torchrun --nproc_per_node 2 -m looped_lib.training CONFIG.json RUN_DIR        (or plain python for one process)

    loss = (1 - w) CE + w R + l2_weight S

with CE the mean cross-entropy per answer token, R the Jacobian penalty at h_T (`regularizers`), S the L2 penalty.
Everything random is a pure function of (seed, step): batches, loop counts, dropout and probe vectors. A run therefore resumes
from weights, moments and a step number to bit-identical results, on the CPU, wherever it was killed.

Nothing in a step waits for the device: losses stay tensors until the line in metrics.jsonl that reports them.
"""

import argparse
import json
import math
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from looped_lib import checkpoints
from looped_lib.addition import IGNORE, Problems, generate_problems, load_jsonl
from looped_lib.allocator import keep_freed_memory
from looped_lib.carry import Carry
from looped_lib.config import ConfigError, DataConfig, ExperimentConfig, TrainingConfig, from_dict, to_dict
from looped_lib.metrics import MetricsLog
from looped_lib.model import LoopedTransformer
from looped_lib.regularizers import JacobianPenalty, l2_penalty

_ORDER, _DROPOUT, _CARRY = 0x200, 0x300, 0x400  # one stream of random numbers each, all from the same seed


class Objective(nn.Module):
    """The three terms of the loss for one part of a batch, in one forward pass (so that DDP sees one module)."""

    def __init__(self, model: LoopedTransformer, config: ExperimentConfig):
        super().__init__()
        self.model = model
        self.config = config
        self.jacobian = JacobianPenalty(config.penalty, config.seed)
        self.step = torch.compile(model.step) if config.training.compile else model.step

    def forward(
        self,
        inputs: Int[Tensor, "batch seq"],
        labels: Int[Tensor, "batch seq"],
        n_loops: int | Int[Tensor, "batch"],
        deepest: int,
        start: Tensor | None,
        training_step: int,
        rank: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(summed CE, R, S, h_T, whose whole answer is right).

        `start` holds the states of the first rows, which are carried; the others begin at h_0.

        With one loop count per sequence, a row keeps its state once its own count is reached; `deepest` is the largest.
        """
        h = self.model.embed(inputs if start is None else inputs[len(start) :])
        h = h if start is None else torch.cat([start, h])
        before = h
        for t in range(deepest):
            new = self.step(h)
            if isinstance(n_loops, Tensor):
                going = (t < n_loops)[:, None, None]
                new, before = torch.where(going, new, h), torch.where(going, h, before)
            else:
                before = h
            h = new
        logits = self.model.readout(h)
        ce = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        penalty = self.config.penalty
        active = penalty.weight > 0 and training_step >= penalty.onset
        r = self.jacobian(self.model, h, training_step, rank) if active else ce.new_zeros(())
        s = l2_penalty(h, before) if penalty.l2_weight > 0 else ce.new_zeros(())
        right = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(dim=1)
        return ce, r, s, h.detach(), right


def load_problems(config: DataConfig) -> tuple[Problems, Problems]:
    """(training, held-out) problems: from the two files, or generated so that they share none."""
    if config.train_file:
        return load_jsonl(config.train_file), load_jsonl(config.test_file, limit=config.n_test)
    train = generate_problems(config.digits, config.n_train, config.seed)
    return train, generate_problems(config.digits, config.n_test, config.seed, skip=config.n_train)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up to `lr`, then a cosine to `lr_end * lr` at the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * (config.lr_end + (1 - config.lr_end) * 0.5 * (1 + math.cos(math.pi * progress)))


def train(config: ExperimentConfig, run_dir: str | Path, progress: bool = True) -> LoopedTransformer:
    """Train the model of `config` and return it, in evaluation mode.

    `run_dir` gets config.json, metrics.jsonl and checkpoints/. If it holds a checkpoint of the same config the run goes on from
    there; of another config, ConfigError. KeyboardInterrupt writes a checkpoint before it goes on its way.
    FloatingPointError on a non-finite loss names the step, its depth and the last good checkpoint.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return Trainer(config, Path(run_dir), progress).run()


class Trainer:
    """State of one run: model, optimiser, carried rows, position."""

    def __init__(self, config: ExperimentConfig, run_dir: Path, progress: bool):
        self.config, self.run_dir, self.progress = config, run_dir, progress
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        c = config.training
        if c.batch_size % (self.world * c.accumulation):
            raise ConfigError(
                f"TrainingConfig.batch_size must be a multiple of processes x accumulation ({self.world} x {c.accumulation}), "
                f"got {c.batch_size}"
            )
        _claim(run_dir, config, self.rank)
        keep_freed_memory()
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = c.precision == "tf32"
        self.problems = load_problems(config.data)[0].to(self.device)
        if self.problems.inputs.shape[1] > config.model.max_len:
            raise ConfigError(
                f"ModelConfig.max_len must be at least {self.problems.inputs.shape[1]}, the longest problem in the data, "
                f"got {config.model.max_len}"
            )
        torch.manual_seed(config.seed)
        self.model = LoopedTransformer(config.model).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, fused=True
        )
        self.objective = Objective(self.model, config)
        self.module = DistributedDataParallel(self.objective) if self.world > 1 else self.objective
        self.part_rows = c.batch_size // self.world // c.accumulation
        self.carries = [Carry(config.carry, self.part_rows) for _ in range(c.accumulation)]
        self.labels = self.problems.labels
        self.orders: dict[int, Tensor] = {}
        self.step, self.saved = 0, -1

    def run(self) -> LoopedTransformer:
        """All steps that are left."""
        self.resume()
        self.model.train()
        c = self.config.training
        log = MetricsLog(self.run_dir / "metrics.jsonl", self.step, c.log_every, write=self.rank == 0)
        with tqdm(total=c.steps, initial=self.step, disable=not self.progress or self.rank > 0, unit="step") as bar:
            try:
                while self.step < c.steps:
                    log.add(self.step, self.train_step())
                    self.step += 1
                    if self.step % c.log_every == 0 or self.step == c.steps:
                        bar.set_postfix(self.flush(log), refresh=False)
                    if c.checkpoint_every and self.step % c.checkpoint_every == 0:
                        self.flush(log)
                        self.save()
                    bar.update()
            except KeyboardInterrupt:
                self.flush(log)
                self.save()
                raise
        self.save()
        return self.model.eval()

    def train_step(self) -> dict[str, Tensor | float]:
        """One optimiser step. Returns what happened, as tensors that nobody has waited for."""
        config, c = self.config, self.config.training
        lr = learning_rate(c, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(_mix(_DROPOUT, config.seed, self.step, self.rank))
        rows = self.batch_rows(self.step)
        depths = config.loops.sample(config.seed, self.step, c.batch_size if c.per_sequence_loops else None)
        mine = slice(self.rank * self.part_rows * c.accumulation, (self.rank + 1) * self.part_rows * c.accumulation)
        loss = ce_sum = r_sum = s_sum = 0.0
        parts = rows[mine].split(self.part_rows)
        # Mean over the answer tokens of the whole batch, so that neither the number of processes nor accumulation changes the
        # gradient (DDP averages over processes: hence `world`). Carried rows may hold a few tokens more or fewer than drawn.
        scale = self.world / (self.labels[rows] != IGNORE).sum()
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            n, deepest = self.part_depths(depths, mine.start + i * self.part_rows)
            with nullcontext() if last or self.world == 1 else self.module.no_sync():
                ce, r, s = self.part_loss(i, part, n, deepest)
                w = config.penalty.weight if self.step >= config.penalty.onset else 0.0
                loss_part = (1 - w) * ce * scale + (w * r + config.penalty.l2_weight * s) / len(parts)
                loss_part.backward()
            loss, ce_sum = loss + loss_part.detach(), ce_sum + ce.detach() * scale
            r_sum, s_sum = r_sum + r.detach() / len(parts), s_sum + s.detach() / len(parts)
        clip = c.grad_clip or math.inf
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            **{"loss": loss, "ce": ce_sum, "penalty": r_sum, "l2": s_sum, "grad_norm": grad_norm, "lr": lr},
            "n_loops": float(np.mean(depths)),
        }

    def part_loss(self, i: int, rows: Tensor, n_loops: int | Tensor, deepest: int) -> tuple[Tensor, Tensor, Tensor]:
        """The three terms for part `i` of this rank's batch."""
        config, carry = self.config, self.carries[i]
        inputs, labels, start = carry.start(self.step, self.problems.inputs[rows], self.labels[rows])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.training.precision == "bf16"):
            stream = self.rank * len(self.carries) + i
            ce, r, s, h, right = self.module(inputs, labels, n_loops, deepest, start, self.step, stream)
        if carry.rows:
            rng = np.random.default_rng([_CARRY, config.seed, self.step, self.rank, i])
            limits = torch.from_numpy(rng.integers(1, config.carry.max_loops + 1, carry.rows)).to(self.device)
            carry.keep(self.step, deepest, inputs, labels, h, right, limits)
        return ce, r, s

    def part_depths(self, depths: int | np.ndarray, first: int) -> tuple[int | Tensor, int]:
        """Loop counts of the part that begins at row `first` of the batch, and the largest of them."""
        if isinstance(depths, int):
            return depths, depths
        part = depths[first : first + self.part_rows]
        return torch.from_numpy(part).to(self.device, non_blocking=True), int(part.max())

    def batch_rows(self, step: int) -> Int[Tensor, "batch"]:
        """Row numbers of batch `step`: consecutive places in an endless list of shuffled epochs."""
        n = len(self.problems)
        first, size = step * self.config.training.batch_size, self.config.training.batch_size
        pieces = []
        while size:
            epoch, offset = divmod(first, n)
            piece = self.order(epoch)[offset : offset + size]
            pieces.append(piece)
            first, size = first + len(piece), size - len(piece)
        return torch.cat(pieces)

    def order(self, epoch: int) -> Int[Tensor, "problem"]:
        """The shuffled row numbers of one epoch."""
        if epoch not in self.orders:
            permutation = np.random.default_rng([_ORDER, self.config.seed, epoch]).permutation(len(self.problems))
            self.orders = {k: v for k, v in self.orders.items() if k == epoch - 1}
            self.orders[epoch] = torch.from_numpy(permutation).to(self.device)
        return self.orders[epoch]

    def flush(self, log: MetricsLog) -> dict[str, Any]:
        """Write the metrics gathered so far; FloatingPointError if a loss among them is not finite."""
        bad = log.flush()
        if bad is not None:
            where = "no checkpoint was written before it"
            if self.saved >= 0:
                where = f"the last good checkpoint is {self.run_dir / 'checkpoints' / f'step_{self.saved:08d}'}"
            raise FloatingPointError(f"the loss is {bad['loss']} at step {bad['step']}, depth {bad['n_loops']:g}; {where}")
        return log.summary

    def save(self) -> None:
        """Checkpoint the present step (rank 0; the others wait for it)."""
        training = dict(self.gather_carried())
        names = {id(p): n for n, p in self.model.named_parameters()}
        for p, state in self.optimizer.state.items():
            training |= {f"adamw.{names[id(p)]}.{k}": v for k, v in state.items()}
        training |= {f"probe.{k}": v for k, v in self.objective.jacobian.state().items()}
        if self.rank == 0 and self.saved != self.step:
            state = {"config": to_dict(self.config), "world_size": self.world}
            checkpoints.save(self.run_dir / "checkpoints", self.step, self.model.state_dict(), training, state)
        self.saved = self.step
        if self.world > 1:
            dist.barrier()

    def gather_carried(self) -> dict[str, Tensor]:
        """The carried rows of every rank, as tensors named carry.<rank>.<part>.<name>."""
        mine = {f"carry.{self.rank}.{i}.{k}": v for i, c in enumerate(self.carries) for k, v in c.tensors.items()}
        if self.world == 1 or not self.config.carry.share:
            return mine
        everyone: list[dict[str, Tensor]] = [{} for _ in range(self.world)]
        dist.all_gather_object(everyone, {k: v.cpu() for k, v in mine.items()})
        return {k: v for tensors in everyone for k, v in tensors.items()}

    def resume(self) -> None:
        """Go on from the newest checkpoint of this run, if there is one."""
        found = checkpoints.latest(self.run_dir / "checkpoints")
        if found is None:
            return
        if self.config.carry.share and found.state["world_size"] != self.world:
            raise ConfigError(f"{self.run_dir} carries states of {found.state['world_size']} processes; resume with as many")
        self.model.load_state_dict(found.weights)
        for name, p in self.model.named_parameters():
            state = {k.rsplit(".", 1)[1]: v for k, v in found.training.items() if k.startswith(f"adamw.{name}.")}
            if state:
                self.optimizer.state[p] = {k: v.to(self.device) for k, v in state.items()}
        for i, carry in enumerate(self.carries):
            start = f"carry.{self.rank}.{i}."
            tensors = {k.removeprefix(start): v.to(self.device) for k, v in found.training.items() if k.startswith(start)}
            carry.tensors = tensors
        probes = {k.removeprefix("probe."): v.to(self.device) for k, v in found.training.items() if k.startswith("probe.")}
        self.objective.jacobian.load_state(probes)
        self.step = self.saved = found.step


def load_model(run_dir: str | Path) -> LoopedTransformer:
    """The model of a run's newest checkpoint, in evaluation mode on the CPU. FileNotFoundError if it has none."""
    found = checkpoints.latest(Path(run_dir) / "checkpoints")
    if found is None:
        raise FileNotFoundError(f"{run_dir} has no checkpoint: train it first, or give the folder of a run (runs/<study>/<run>)")
    config = from_dict(ExperimentConfig, found.state["config"], str(run_dir))
    model = LoopedTransformer(config.model)
    model.load_state_dict(found.weights)
    return model.eval()


def _claim(run_dir: Path, config: ExperimentConfig, rank: int) -> None:
    """Write config.json into a new run folder, or check that it belongs to this config."""
    path = run_dir / "config.json"
    mine = json.loads(json.dumps(to_dict(config)))
    if path.exists():
        theirs = json.loads(path.read_text())
        if theirs != mine:
            changed = [k for k in mine if theirs.get(k) != mine[k]]
            raise ConfigError(f"{path} belongs to another experiment (it differs in {', '.join(changed)}); use a new folder")
    elif rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(mine, indent=1))
        os.replace(partial, path)


def _mix(*words: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def main() -> None:
    """Train the experiment in a JSON file, under torchrun or alone."""
    parser = argparse.ArgumentParser(description=train.__doc__)
    parser.add_argument("config", type=Path, help="ExperimentConfig as JSON (a run's config.json will do)")
    parser.add_argument("run_dir", type=Path, help="folder of the run")
    args = parser.parse_args()
    config = from_dict(ExperimentConfig, json.loads(args.config.read_text()), str(args.config))
    if "WORLD_SIZE" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train(config, args.run_dir)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()

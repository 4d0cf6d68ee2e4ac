"""transformers' Trainer, taught to loop: depths, the penalty, what is logged, and atomic checkpoints.

The loss of one update, over all its micro-batches m (of all processes), with CE summed over the labels of each:

    (1 - w) sum_m CE_m / (labels in the update)  +  w mean of R_m over the micro-batches the penalty is estimated on

The depth of micro-batch m of update u is `loops.sample(seed, u * accumulation + m)`: the same on every process, resumed or not.
With `penalty.share` below 1 the penalty is estimated on that share of the micro-batches, evenly spaced.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from looped_lib.core.files import read_json
from looped_lib.ouro.finetune import saving
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.ouro.model import costs
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.training.jacobian_penalty import JacobianPenalty


class LoopedTrainer(Trainer):
    """Trains an Ouro model as a FinetuneConfig says; everything not told here is the Trainer's."""

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the labels of the whole update

    def __init__(self, config: FinetuneConfig, run_dir: str | Path, model: PreTrainedModel, args: TrainingArguments, **kwargs):
        super().__init__(model=model, args=args, **kwargs)
        self.config, self.run_dir = config, Path(run_dir)
        self.penalty = JacobianPenalty(config.penalty, config.seed)
        self.tally = Tally(args.device)
        self.micro = (-1, 0)  # the update we are in, and its micro-batches so far
        self.architecture = model.config

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """The loss of one micro-batch, scaled so that the sum over an update's is the formula above."""
        c, update = self.config, self.state.global_step
        m = self.micro[1] if self.micro[0] == update else 0
        self.micro = (update, m + 1)
        if m == 0:
            self.tally.next_update()
        n_loops = c.loops.sample(c.seed, update * self.args.gradient_accumulation_steps + m)
        of_phi = self._penalty_of(m, update, inputs) if self._penalised(m) else None
        mixture = {"entropy_weight": c.entropy_weight} if c.loss == "gate_mixture" else {}
        out = model(**inputs, n_loops=n_loops, of_phi=of_phi, num_items_in_batch=num_items_in_batch, **mixture)
        # Gradients are averaged over the processes, but the labels were counted over all of them.
        ce = out.loss * self.args.world_size
        penalty = torch.zeros_like(ce) if out.penalty is None else out.penalty / self._estimates()
        self.tally.add(self.architecture, inputs, n_loops, ce, penalty)
        w = c.penalty.weight if update >= c.penalty.onset else 0.0
        return (1 - w) * ce + w * penalty

    def _estimates(self) -> int:
        """Micro-batches of this update that the penalty is estimated on."""
        return math.ceil(self.config.penalty.share * self.current_gradient_accumulation_steps)

    def _penalised(self, m: int) -> bool:
        c, parts = self.config.penalty, self.current_gradient_accumulation_steps
        chosen = {i * parts // self._estimates() for i in range(self._estimates())}
        return c.weight > 0 and self.state.global_step >= c.onset and m in chosen

    def _penalty_of(self, m: int, update: int, inputs: dict[str, Tensor]) -> Any:
        part = m * self.args.world_size + self.args.process_index
        tokens = inputs.get("attention_mask")
        tokens = None if tokens is None else tokens.bool()
        return lambda phi, h: self.penalty.of(phi, h, update, part, tokens)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace the Trainer's averages by ours, over all processes: the one place where a run waits for its device."""
        if "loss" not in logs:
            return super().log(logs, start_time)
        line = self.tally.close()
        grad_norm = logs.get("grad_norm", math.nan)
        super().log({**line, "grad_norm": float(grad_norm), "learning_rate": logs["learning_rate"]}, start_time)
        if not math.isfinite(line["loss"]) or not math.isfinite(line["penalty"]):
            raise FloatingPointError(
                f"update {self.state.global_step}: loss {line['loss']}, penalty {line['penalty']}; the last checkpoint is whole. "
                "Lower updates.lr or penalty.weight and start a new run"
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        weights = saving.whole_weights(self.model)
        tensors = saving.whole_moments(self.model, self.optimizer.optimizer) | saving.random_states()
        if self.args.should_save:
            with saving.writing(saving.checkpoint_folder(self.run_dir, self.state.global_step), self.run_dir) as folder:
                self.write_model(folder, weights)
                saving.write_training(folder, tensors, self.lr_scheduler.state_dict(), self.config)
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                saving.write_sums(folder)
            saving.prune(self.run_dir, self.config.updates.checkpoints_kept)
        if dist.is_initialized():
            dist.barrier()  # no process trains on before the checkpoint is there

    def write_model(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """A model folder that from_pretrained loads, tokenizer included."""
        self.model.save_pretrained(folder, state_dict=weights)
        self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights were loaded when the model was made (`loading.load_model`)."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        moments = saving.read_training(Path(checkpoint), "adamw.")
        saving.check_moments(Path(checkpoint), self.model, moments)
        saving.load_moments(self.model, self.optimizer.optimizer, moments)
        self.lr_scheduler.load_state_dict(read_json(Path(checkpoint) / saving.SCHEDULE))
        for group, lr in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = lr  # the schedule sets it after an update, for the next one

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saving.set_random_state(saving.read_training(Path(checkpoint), "random."), self.args.process_index)


class Tally:
    """What the micro-batches since the last line of the log were like. Tensors stay on the device until then."""

    def __init__(self, device: torch.device):
        self.device = device
        self.peak = costs.peak_flops(device)
        self.since: float | None = None
        self._open()

    def _open(self) -> None:
        self.updates = 0
        self.loops: list[int] = []
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)  # CE, penalty, tokens, FLOPs

    def next_update(self) -> None:
        """The micro-batches that follow are another update's. The clock starts with the first one."""
        self.updates += 1
        self.since = time.perf_counter() if self.since is None else self.since

    def add(self, architecture: OuroConfig, inputs: dict[str, Tensor], n_loops: int, ce: Tensor, penalty: Tensor) -> None:
        """One micro-batch."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        tokens = torch.full_like(ce, ids.numel()) if mask is None else mask.sum()
        flops = tokens.double() * costs.training_flops(architecture, n_loops, ids.shape[1])
        self.sums += torch.stack([x.detach().double() for x in (ce, penalty, tokens, flops)])
        self.loops.append(n_loops)

    def close(self) -> dict[str, float]:
        """The means per update, over all processes. All processes must call."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        if world > 1:
            dist.all_reduce(self.sums)
        ce, penalty, tokens, flops = self.sums.tolist()
        now, updates = time.perf_counter(), self.updates
        seconds, self.since = now - self.since, now
        line = {
            "loss": ce / world / updates,
            "penalty": penalty / world / updates,
            "n_loops": sum(self.loops) / len(self.loops),
            "tokens_per_sec": tokens / seconds,
            "flops_per_sec": flops / seconds,
            "memory_bytes": costs.memory_used(self.device),
            "seconds_per_update": seconds / updates,
        }
        if self.peak is not None:
            line["mfu"] = flops / seconds / (self.peak * world)
        self._open()
        return line

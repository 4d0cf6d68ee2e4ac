"""Carry: training rows that go on from where an earlier batch ended, so that deep states are seen without deep unrolling.

A carried row keeps its problem and its detached state. Each training step runs T more loops on it. The final state of a fresh row
takes its place when

    its answer is wrong     it has taught the model where it fails; a state that has lost its problem teaches no more
    its age is at its limit drawn uniformly from 1..max_loops at birth, so that ages stay spread over the whole range

The first rule is a curriculum that needs no schedule: rows grow as old as the model can hold them, and no older. The cost of a
step does not change.

The idea is the sample pool of neural cellular automata (Mordvintsev et al. 2020) and of persistent contrastive divergence.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from looped_lib.config import CarryConfig, ConfigError


class Carry:
    """The carried rows of one part of a batch: the first `rows` of it are carried, the rest are fresh.

    Of a share above 0 at least one row. ConfigError if the part has no second row, a fresh one, to replace it.
    """

    def __init__(self, config: CarryConfig, batch_rows: int):
        self.config = config
        if config.share and batch_rows < 2:
            raise ConfigError(
                "CarryConfig.share needs at least 2 rows in each part of the batch, got 1: raise TrainingConfig.batch_size, or "
                "lower accumulation or the number of processes"
            )
        self.rows = min(max(1, round(config.share * batch_rows)), batch_rows // 2) if config.share else 0
        self.tensors: dict[str, Tensor] = {}

    def start(
        self, training_step: int, inputs: Int[Tensor, "batch seq"], labels: Int[Tensor, "batch seq"]
    ) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"], Float[Tensor, "carried seq d_model"] | None]:
        """The batch with its first rows replaced by carried problems, and their states (None before there are any)."""
        if not self.rows or training_step < self.config.onset or not self.tensors:
            return inputs, labels, None
        t = self.tensors
        return torch.cat([t["inputs"], inputs[self.rows :]]), torch.cat([t["labels"], labels[self.rows :]]), t["state"]

    def keep(
        self,
        training_step: int,
        n_loops: int,
        inputs: Int[Tensor, "batch seq"],
        labels: Int[Tensor, "batch seq"],
        last: Float[Tensor, "batch seq d_model"],
        right: Bool[Tensor, "batch"],
        limits: Int[Tensor, "carried"],
    ) -> None:
        """Take over the final states `last` of this batch.

        `right` tells whose answer is right there; `limits` are the ages at which newborn rows will be replaced.
        """
        if not self.rows or training_step < self.config.onset:
            return
        # Row i of the carried rows is replaced by row i of the fresh ones; share is at most one half, so there is one.
        old, fresh = slice(0, self.rows), slice(self.rows, 2 * self.rows)
        age = self.tensors.get("age", torch.full_like(limits, self.config.max_loops)) + n_loops
        limit = self.tensors.get("limit", torch.zeros_like(limits))
        dead = (age >= limit) | ~right[old]
        self.tensors = {
            "age": torch.where(dead, n_loops, age),
            "limit": torch.where(dead, limits, limit),
            "inputs": torch.where(dead[:, None], inputs[fresh], inputs[old]),
            "labels": torch.where(dead[:, None], labels[fresh], labels[old]),
            "state": torch.where(dead[:, None, None], last[fresh], last[old]).detach(),
        }

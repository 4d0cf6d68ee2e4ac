"""Which problems a training step sees: consecutive places in an endless list of epochs, shuffled or in the order of the file."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from looped_lib.config import TrainingConfig
from looped_lib.core import streams


class Batches:
    """Row numbers of each batch, a pure function of (seed, step): a resumed run needs no state, all ranks agree."""

    def __init__(self, config: TrainingConfig, n_problems: int, seed: int, device: torch.device | None = None):
        self.config, self.n_problems, self.seed, self.device = config, n_problems, seed, device
        self._orders: dict[int, Tensor] = {}

    def rows(self, step: int) -> Int[Tensor, "batch"]:
        """Row numbers of step `step`. A batch may span epochs; within an epoch every problem is in one batch, which
        `batch_repeats` steps in a row train on."""
        missing = self.config.batch_size
        first = step // self.config.batch_repeats * missing
        pieces = []
        while missing:
            epoch, offset = divmod(first, self.n_problems)
            piece = self._order(epoch)[offset : offset + missing]
            pieces.append(piece)
            first, missing = first + len(piece), missing - len(piece)
        return torch.cat(pieces)

    def _order(self, epoch: int) -> Int[Tensor, "problem"]:
        """The row numbers of one epoch, kept while it lasts."""
        if epoch not in self._orders:
            permutation = np.arange(self.n_problems)
            if self.config.shuffle:
                permutation = streams.generator(streams.BATCHES, self.seed, epoch).permutation(self.n_problems)
            self._orders = {k: v for k, v in self._orders.items() if k == epoch - 1}
            self._orders[epoch] = torch.from_numpy(permutation).to(self.device)
        return self._orders[epoch]

"""The loss of one part of a batch: cross-entropy, Jacobian penalty and L2 penalty from one pass through the loops.

With TrainingConfig.backprop_loops = k > 0, back-propagation is truncated: of T loops only the last k have a gradient,

    h_{T-k} constant,    h_{t+1} = Phi(h_t),  t = T-k, ..., T-1,

and the loops before them keep no graph: they cost one pass instead of three, and no memory. For T <= k it is the full gradient.
For T > k whatever comes before the loops (position embedding, prelude) has a gradient only through an injected e, and the token
embedding also through the head that it is tied to. Without injection the former learn from batches of at most k loops alone.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from looped_lib.config import ExperimentConfig
from looped_lib.models.looped import LoopedTransformer
from looped_lib.models.state import moving
from looped_lib.regularizers import JacobianPenalty, last_change
from looped_lib.tasks.addition import IGNORE


class Terms(NamedTuple):
    """What one pass yields. The first three carry gradient."""

    ce: Float[Tensor, ""]
    """Cross-entropy summed over the answer tokens."""
    jacobian: Float[Tensor, ""]
    """R at h_T (see `regularizers`), 0 before its onset."""
    l2: Float[Tensor, ""]
    """S at h_T, 0 before its onset."""
    last: Float[Tensor, "batch seq d_model"]
    """h_T, detached."""
    right: Bool[Tensor, "batch"]
    """Whose whole answer is right at h_T."""


class Objective(nn.Module):
    """All terms in one forward pass, so that DDP sees one module."""

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
        start: Float[Tensor, "carried seq d_model"] | None,
        training_step: int,
        stream: int,
    ) -> Terms:
        """The terms of a part that begins at h_0, but for its first rows, which begin at the states in `start`.

        With one loop count per sequence a row keeps its state once its own count is reached; `deepest` is the largest.
        `stream` numbers the parts of one training step over all processes, each with its own probe vectors.
        """
        h = self.model.embed(inputs if start is None else inputs[len(start) :])
        h = h if start is None else torch.cat([self.model.resume(start, inputs[: len(start)]), h])
        constant = max(0, deepest - (self.config.training.backprop_loops or deepest))
        h = self.after(h, constant) if constant else h
        before = h
        for t in range(constant, deepest):
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
        on, none = training_step >= penalty.onset, ce.new_zeros(())
        jacobian = self.jacobian(self.model, h, training_step, stream) if on and penalty.weight > 0 else none
        l2 = none
        if on and penalty.l2_weight > 0:
            l2 = last_change(moving(self.model, h), moving(self.model, before), penalty.last_change)
        right = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(dim=1)
        return Terms(ce, jacobian, l2, h.detach(), right)

    def after(self, state: Float[Tensor, "batch seq width"], n_loops: int) -> Float[Tensor, "batch seq width"]:
        """The state after loops that have no gradient; what is held beside h keeps its own."""
        deep = state
        with torch.no_grad():
            for _ in range(n_loops):
                deep = self.step(deep)
        return self.model.injection.follow(moving(self.model, deep), state)

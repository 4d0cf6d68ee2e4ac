"""The loss of one part of a batch, a sum of named terms from one pass through the loops:

    loss = (1 - w) ce + w penalty + sum of weight_i S_i        "penalty" is the Jacobian's R, S_i are the experiment's `terms`

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
from looped_lib.models.looped import evaluating
from looped_lib.models.protocols import Trainable
from looped_lib.models.state import loop_at, moving, resumed, with_moving
from looped_lib.tasks.problems import IGNORE
from looped_lib.training.jacobian_penalty import JacobianPenalty


class Terms(NamedTuple):
    """What one pass yields."""

    values: dict[str, Float[Tensor, ""]]
    """The terms of the loss by name, with gradient: "ce" summed over the answer tokens, the others 0 before their onset."""
    last: Float[Tensor, "batch seq d_model"]
    """h_T, detached."""
    right: Bool[Tensor, "batch"]
    """Whose whole answer is right at h_T."""


class Objective(nn.Module):
    """All terms in one forward pass, so that DDP sees one module."""

    def __init__(self, model: Trainable, config: ExperimentConfig):
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
        h = h if start is None else torch.cat([resumed(self.model, start, inputs[: len(start)]), h])
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
        values = {"ce": ce, **self.penalties(h, before, training_step, stream)}
        right = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(dim=1)
        return Terms(values, h.detach(), right)

    def weights(self, training_step: int) -> dict[str, float]:
        """The weight of each term of the loss: 0 before its onset."""
        c = self.config
        w = c.penalty.weight if training_step >= c.penalty.onset else 0.0
        others = {name: term.weight if training_step >= term.onset else 0.0 for name, term in c.terms.items()}
        return {"ce": 1 - w, "penalty": w, **others}

    def penalties(
        self, h: Float[Tensor, "batch seq width"], before: Float[Tensor, "batch seq width"], training_step: int, stream: int
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms beside the cross-entropy, at states h = Phi(before)."""
        weights = self.weights(training_step)
        values = dict.fromkeys(("penalty", *self.config.terms), h.new_zeros(()))
        if weights["penalty"]:
            values["penalty"] = self.jacobian(self.model, h, training_step, stream)
        for name, term in self.config.terms.items():
            if weights[name]:
                with evaluating(self.model):
                    values[name] = term.value(*loop_at(self.model, h), moving(self.model, before))
        return values

    def after(self, state: Float[Tensor, "batch seq width"], n_loops: int) -> Float[Tensor, "batch seq width"]:
        """The state after loops that have no gradient; what is held beside h keeps its own."""
        deep = state
        with torch.no_grad():
            for _ in range(n_loops):
                deep = self.step(deep)
        return with_moving(self.model, moving(self.model, deep), state)

"""Trajectories h_0, h_1, ..., h_T of a looped model: the states, and what each loop did to every token.

Uses embed, step and readout only, so it works on every looped model of the project. If the model also splits its step into
loop_norm(before_norm(h)), the norm of the state is recorded before that norm too: growth hides behind it.

With h the state of one token,

    norm            ||h_t||
    from_start      ||h_t - h_0|| / ||h_0||                how far it has gone
    residual        ||h_t - h_{t-1}|| / ||h_{t-1}||        how much the last loop moved it; NaN at loop 0
    before_norm     ||before_norm(h_{t-1})||               what Phi's last norm was given; NaN at loop 0
    cosine_to_final cos(h_t, h_T)                          against the last state that is held
    entropy         of softmax(readout(h_t)), in nats      how sure it is of its next token (the logit lens)
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from looped_lib.core.files import replacing
from looped_lib.models.lengths import token_norm
from looped_lib.models.looped import evaluating
from looped_lib.models.state import held, moving

MAX_BYTES = 4 * 2**30
_ROWS_AT_ONCE = 256  # sequences read out together by the logit lens


@dataclass(frozen=True)
class Trajectory:
    """States of a batch of sequences after chosen loop counts, and the scalars of each loop that need its neighbours."""

    ids: Int[Tensor, "batch seq"]
    """The tokens."""
    loops: Int[Tensor, "loop"]
    """The loop counts held, ascending."""
    states: Float[Tensor, "loop batch seq d_model"]
    """h_t for each of them."""
    held: Float[Tensor, "batch seq rest"]
    """What the states hold beside h_t, the same at all loops (see `state`): of width 0 where nothing is injected."""
    residual: Float[Tensor, "loop batch seq"]
    """||h_t - h_{t-1}|| / ||h_{t-1}||, also where h_{t-1} itself is not held."""
    from_start: Float[Tensor, "loop batch seq"]
    """||h_t - h_0|| / ||h_0||, also where h_0 is not held."""
    before_norm: Float[Tensor, "loop batch seq"]
    """||before_norm(h_{t-1})||; ||h_t|| of a model that does not offer it."""

    @property
    def norm(self) -> Float[Tensor, "loop batch seq"]:
        """||h_t||."""
        return token_norm(self.states)

    @property
    def cosine_to_final(self) -> Float[Tensor, "loop batch seq"]:
        """Cosine between h_t and the last state held."""
        return F.cosine_similarity(self.states.float(), self.states[-1:].float(), dim=-1)

    def problem(self, i: int) -> "Trajectory":
        """The trajectory of sequence `i` alone, still a batch."""
        rows = slice(i, i + 1)
        scalars = (s[:, rows] for s in (self.residual, self.from_start, self.before_norm))
        return Trajectory(self.ids[rows], self.loops, self.states[:, rows], self.held[rows], *scalars)

    def between(self, first: int, last: int) -> "Trajectory":
        """The part with first <= loop count <= last. ValueError if nothing of it is held."""
        keep = (self.loops >= first) & (self.loops <= last)
        if not keep.any():
            held = f"{int(self.loops[0])} to {int(self.loops[-1])}"
            raise ValueError(f"no state between loops {first} and {last} is held; there are states from {held}")
        scalars = (s[keep] for s in (self.residual, self.from_start, self.before_norm))
        return Trajectory(self.ids, self.loops[keep], self.states[keep], self.held, *scalars)

    def save(self, path: str | Path) -> None:
        """Write everything into one safetensors file, atomically."""
        with replacing(path) as partial:
            partial.write_bytes(save({f.name: getattr(self, f.name).cpu().contiguous() for f in fields(self)}))

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """What `save` wrote. ValueError names the file if it is damaged or holds something else."""
        try:
            tensors = load(Path(path).read_bytes())
        except SafetensorError as e:
            raise ValueError(f"{path}: not a whole safetensors file ({e}); record the trajectory again") from None
        expected = [f.name for f in fields(cls)]
        if set(tensors) != set(expected):
            raise ValueError(f"{path}: a trajectory holds {', '.join(expected)}; this file holds {', '.join(sorted(tensors))}")
        return cls(**tensors)


@dataclass(frozen=True)
class LogitLens:
    """What the model would say if the loops stopped at each state of a trajectory."""

    prediction: Int[Tensor, "loop batch seq"]
    """The most probable next token after each position."""
    entropy: Float[Tensor, "loop batch seq"]
    """Entropy of its distribution, in nats."""


def trajectory(
    model: nn.Module,
    ids: Int[Tensor, "batch seq"],
    loops: int | Iterable[int],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    max_bytes: int = MAX_BYTES,
) -> Trajectory:
    """The states after 0, 1, ..., `loops` loops, or after just the loop counts in `loops`, without gradient or dropout.

    The model runs on its own device in its own precision; what is kept goes to `device` as `dtype` (default: the model's).
    Memory: one state [batch, seq, d_model] for each loop count kept; ValueError, before any loop, if that is more than
    `max_bytes`, or if the deepest loop count is below 1.
    """
    kept = range(min(loops + 1, sys.maxsize)) if isinstance(loops, int) else sorted(set(loops))
    if not kept or kept[-1] < 1 or kept[0] < 0:
        raise ValueError(f"a trajectory needs loop counts of at least 0, the deepest at least 1, got {loops}")
    with torch.no_grad(), evaluating(model):
        state = model.embed(ids)
        first = h = moving(model, state)
        dtype = dtype or h.dtype
        need = len(kept) * h.numel() * dtype.itemsize
        if need > max_bytes:
            raise ValueError(
                f"{len(kept)} states of {' x '.join(map(str, h.shape))} {str(dtype).removeprefix('torch.')} need "
                f"{need / 1e9:.1f} GB, more than the {max_bytes / 1e9:.1f} GB allowed: keep fewer loops (every tenth, say) "
                "or a smaller dtype"
            )
        states = torch.empty(len(kept), *h.shape, dtype=dtype, device=device)
        scalars = torch.full((3, len(kept), *ids.shape), math.nan, device=h.device)
        place = 0
        for t in range(kept[-1] + 1):
            before = u = h
            if t:
                u, state = _step(model, state)
                u, h = moving(model, u), moving(model, state)
            if t == kept[place]:
                states[place] = h
                scalars[1, place] = token_norm(h - first) / token_norm(first)
                if t:
                    scalars[0, place], scalars[2, place] = token_norm(h - before) / token_norm(before), token_norm(u)
                place += 1
    residual, from_start, before_norm = scalars.to(device)
    rest = held(model, state).to(device, dtype)
    return Trajectory(ids.to(device), torch.tensor(list(kept)), states, rest, residual, from_start, before_norm)


def logit_lens(model: nn.Module, path: Trajectory) -> LogitLens:
    """Prediction and entropy at every state of `path`, read out on the model's device, many states together."""
    device = next(model.parameters()).device
    rows, row = path.states.flatten(0, 1), torch.arange(len(path.ids)).repeat(len(path.loops))
    prediction = torch.empty(rows.shape[:2], dtype=torch.long)
    entropy = torch.empty(rows.shape[:2])
    with torch.no_grad(), evaluating(model):
        dtype = next(model.parameters()).dtype
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            log_p = model.readout(torch.cat([rows[part], path.held[row[part]]], dim=-1).to(device, dtype)).float().log_softmax(-1)
            prediction[part] = log_p.argmax(-1).cpu()
            entropy[part] = -(log_p.exp() * log_p).sum(-1).cpu()
    return LogitLens(*(x.view(path.states.shape[:3]) for x in (prediction, entropy)))


def _step(model: nn.Module, h: Tensor) -> tuple[Tensor, Tensor]:
    """(state before the loop's last norm, next state)."""
    if not hasattr(model, "before_norm"):
        h = model.step(h)
        return h, h
    u = model.before_norm(h)
    return u, model.loop_norm(u)

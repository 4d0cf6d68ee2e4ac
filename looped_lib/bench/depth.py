"""Accuracy at depths 0, 2, ..., 100: one pass over the loops against generation problem by problem and depth by depth.

The naive form needs hours for a test set, so it is timed on a few problems and at the six depths 0, 20, ..., 100. Every loop
costs the same, so its time is affine in the depth, and six depths with the mean of all 51 cost on average what all 51 do.
Ours is timed on some of the chunks that `depth_curve` cuts a sorted test set of 5,000 problems into: a smaller set would
share fewer prefixes. It gives all 101 depths. Both are seconds per problem for the 51 depths.
"""

import time

import torch
import torch.nn.functional as F

from looped_lib.bench import public_form
from looped_lib.config import ModelConfig
from looped_lib.dynamics.depth import depth_curve
from looped_lib.models.looped import LoopedTransformer
from looped_lib.tasks.addition import EOS, generate_problems
from looped_lib.tasks.problems import Problems
from looped_lib.training.memory import keeping_freed_memory

_CHUNK, _CHUNKS = 64, 5
_SAMPLE = slice(None, None, _CHUNK // 2)  # of a chunk's problems, for the naive form: two


@keeping_freed_memory()
def measure(config: ModelConfig | None = None, max_depth: int = 100) -> dict[str, tuple[float, str]]:
    """{name: (ratio, what was compared)}. RuntimeError if the two forms disagree where both were run."""
    torch.manual_seed(0)
    model = LoopedTransformer(config or ModelConfig())
    chunks = spread_chunks(generate_problems(4, 5000, seed=0))
    sample_depths = range(0, max_depth + 1, max_depth // 5)
    teach(model, [chunk[_SAMPLE] for chunk in chunks], sample_depths[1])
    public = public_form.PublicModel(model)
    our_s, public_s = [], []  # per problem, for all depths
    for chunk in chunks:
        start = time.perf_counter()
        curve = depth_curve(model, chunk, max_depth)
        middle = time.perf_counter()
        solved = public_form.solved_by_depth(public, chunk[_SAMPLE], sample_depths)
        our_s.append((middle - start) / len(chunk))
        per_depth = (time.perf_counter() - middle) / solved.numel()
        public_s.append(per_depth * len(range(0, max_depth + 1, 2)))
        if not torch.equal(curve.correct[_SAMPLE, list(sample_depths)], solved):
            raise RuntimeError(f"one pass and generation disagree on {chunk[_SAMPLE].texts()} at {sample_depths}")
    ours, naive = sum(our_s) / len(chunks), sum(public_s) / len(chunks)
    return {"depth_curve_vs_public": (naive / ours, f"naive {naive:.2f} s, ours {ours:.4f} s a problem")}


def spread_chunks(problems: Problems) -> list[Problems]:
    """Some chunks of the problems in `depth_curve`'s order (shorter first, then by their characters), evenly spread."""
    rows = problems.ids.tolist()
    order = sorted(range(len(rows)), key=lambda i: (rows[i].index(EOS), rows[i]))
    starts = torch.linspace(0, len(rows) - _CHUNK, _CHUNKS).long().tolist()
    return [problems[torch.tensor(order[s : s + _CHUNK])] for s in starts]


def teach(model: LoopedTransformer, samples: list[Problems], depth: int, steps: int = 30) -> None:
    """Fit the samples at one depth, so that the forms have right answers to agree on; no time depends on it."""
    inputs, labels = torch.cat([s.inputs for s in samples]), torch.cat([s.labels for s in samples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        F.cross_entropy(model(inputs, depth).flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

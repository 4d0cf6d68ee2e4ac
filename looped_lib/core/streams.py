"""Streams of random numbers: all follow from one seed, and each is independent of the others.

What is drawn is a function of (stream, seed, step, ...), so that a run that goes on draws what it would have drawn.
"""

import numpy as np

LOOPS, BATCHES, DROPOUT, CARRY, PROBES, ROWS = 0x100, 0x200, 0x300, 0x400, 0x500, 0x600


def generator(stream: int, *words: int) -> np.random.Generator:
    """A generator of a stream, for the seed, step, ... in `words`."""
    return np.random.default_rng([stream, *words])


def seed_of(stream: int, *words: int) -> int:
    """A seed of 63 bits for torch, of a stream and `words`."""
    return int(np.random.SeedSequence([stream, *words]).generate_state(1, np.uint64)[0] >> 1)

"""Settings of the process, made for a block and taken back after it: the precision of products on a GPU, random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32_products(on: bool) -> Iterator[None]:
    """Matrix products on a GPU in TF32, or in full float32, while the block runs."""
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in flags]
    try:
        for backend in flags:
            backend.allow_tf32 = on
        yield
    finally:
        for backend, was in zip(flags, before, strict=True):
            backend.allow_tf32 = was


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """torch's generators, of the CPU and of `device`, are after the block as they were before it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield

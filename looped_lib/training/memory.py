"""Keep the memory that tensors free, instead of returning it to the system and faulting it in again at the next
operation.

glibc's malloc maps every block above a threshold (32 MB at most) afresh and unmaps it when it is freed, so on the CPU
each operation on a large tensor begins with the kernel clearing thousands of pages. The setting is process-wide, so
`keeping_freed_memory` takes it back.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # from <malloc.h>
# What malloc arrives at by itself in a process that frees large blocks. Any setting ends its search, so it is left there.
_USUAL = {_M_MMAP_MAX: 65_536, _M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20}


def keep_freed_memory() -> None:
    """From now on, serve large blocks from the heap and never shrink it. For a process of its own.

    The process then holds on to the most memory it ever used, which for a training run is what one step uses anyway. Without
    effect where the libc is not glibc.
    """
    _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1})  # no block is mapped on its own, and nothing is trimmed


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """`keep_freed_memory` while the block runs; then what is free goes back to the system."""
    keep_freed_memory()
    try:
        yield
    finally:
        _set(_USUAL)


def _set(parameters: dict[int, int]) -> None:
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in parameters.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(ctypes.c_size_t(0))

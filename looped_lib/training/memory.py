"""Keep the memory that tensors free, instead of returning it to the system and faulting it in again at the next
operation.

glibc's malloc maps every block above a threshold (32 MB at most) afresh and unmaps it when it is freed, so on the CPU
each operation on a large tensor begins with the kernel clearing thousands of pages. The setting is process-wide and
lasts until exit: it is a function that programs call, not something an import does.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from <malloc.h>


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and never shrink it. False if that cannot be had: the libc is not glibc.

    The process then holds on to the most memory it ever used, which for a training run is what one step uses anyway.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No block is mapped on its own; a trim threshold of -1 turns trimming off.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))

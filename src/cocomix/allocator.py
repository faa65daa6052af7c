"""What the C library does with memory that a tensor no longer needs."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets the process keep freed memory for its next tensors, until it ends; returns whether it could be arranged.

    A training step frees and asks again for gradients and activations of many megabytes. By default glibc maps each
    such block anew and gives it back, and the kernel must clear and map every page again: a tenth of a step of the
    paper's 69M network on a CPU (``docs/log.md``). Blocks taken from the heap instead (``M_MMAP_MAX`` 0), of
    which up to 2 GB at its end are kept (``M_TRIM_THRESHOLD``), are ready at once. Only glibc has the two; elsewhere
    nothing is changed.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))

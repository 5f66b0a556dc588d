"""glibc's allocator on a processor: what one step frees is kept for the next.

By itself glibc maps every large tensor anew and gives it back when it is freed, and each time the system has to find
zeroed pages: full training of 135 M parameters spent a quarter of its time so (docs/log.md). Kept is at most what was
in use at once, and half a gibibyte at the top of the heap; `release` in `meter.py` gives it back all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""mallopt(3): M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes."""
MAPPED_FROM = 2**30
TRIMMED_FROM = 2**29
_USERS_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tell glibc so, for the rest of the process; whether it took it. What the user has set stays.

    Musl, macOS and Windows, and allocators that are loaded in front of glibc's, have no such switch.
    """
    if any(os.environ.get(name) for name in _USERS_OWN):
        return False
    with contextlib.suppress(OSError, AttributeError, TypeError):
        tell = ctypes.CDLL(None).mallopt
        return bool(tell(_MMAP_THRESHOLD, MAPPED_FROM) and tell(_TRIM_THRESHOLD, TRIMMED_FROM))
    return False

"""How much memory a piece of work holds at its peak, measured so that pieces in one process can be compared.

Before the piece, garbage is collected and the allocator gives free pages back, so that what an earlier piece
left behind does not count. The kernel's own high-water mark is then reset (`/proc/self/clear_refs`); where that
is not possible a thread samples the resident size. On CUDA it is the device's allocated bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

SECONDS_BETWEEN_SAMPLES = 0.02


class MemoryMeter:
    """Measure within a `with` block; `peak_bytes` holds the peak so far, and after it the final one."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._is_done = threading.Event()
        self._thread: threading.Thread | None = None
        self._on_device = False

    def __enter__(self) -> Self:
        import torch

        release()
        self._on_device = torch.cuda.is_available()
        if self._on_device:
            torch.cuda.reset_peak_memory_stats()
        elif not _reset_high_water():
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self._is_done.set()
        if self._thread:
            self._thread.join()
        elif self._on_device:
            import torch

            self.peak_bytes = int(torch.cuda.max_memory_allocated())
        else:
            self.peak_bytes = _high_water_bytes()

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)
            if self._is_done.wait(SECONDS_BETWEEN_SAMPLES):
                return


def release(*dropped: weakref.ref[Any]) -> None:
    """Give memory that nothing uses back to the system (best effort).

    `dropped` are what the caller let go of: where all of it is gone already, no cycle holds it, and nothing is
    collected, for a collection looks through every object of every library (tenths of a second). Without any, all
    garbage is collected.
    """
    if not dropped or any(one() is not None for one in dropped):
        gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _high_water_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)

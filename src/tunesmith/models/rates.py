"""How fast this machine is at what training does: measured once in a second or two, and remembered.

Kept in the user's cache folder as `machine-*.json`, one file for each processor, version of torch, and number of
processors this process may use. Timed on this thread's clock, so a busy machine gives lower rates than an idle one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from tunesmith.core.cache import user_cache
from tunesmith.core.errors import UserError
from tunesmith.core.publish import write_json

_SECONDS = 0.12
"""For each of the four measurements."""
_SIDE = 1024
"""Rows, inputs and outputs of the product that is timed: those of a small model's layer on a micro-batch."""
_TABLE = 2**24
"""Numbers in each of the two tables whose sum is timed, 64 MiB in fp32: more than any cache holds."""
WORTH_A_THREAD = 1.05
"""More threads are used where products are so many times faster."""
CPU_QUOTAS = ("/sys/fs/cgroup/cpu.max",)


@dataclass(frozen=True)
class Rates:
    """What so many threads of this machine do in a second."""

    fp32_flops: float
    """Floating-point operations a second in fp32 matrix products, two for each multiplication with its addition."""
    bf16_flops: float
    """The same in bf16."""
    bytes_per_second: float
    """Read and written by an addition of tables that fit no cache."""
    operation_seconds: float
    """What an operation on few numbers takes, with the note that the backward pass needs."""

    @property
    def ratio(self) -> float:
        """How many times faster bf16 products are than fp32 ones."""
        return round(self.bf16_flops / self.fp32_flops, 2)


@dataclass(frozen=True)
class Measured:
    """This machine by measurement."""

    threads: int
    """The number of threads that products are fastest with."""
    rates: Rates
    """With that many."""
    tried: dict[str, float]
    """fp32 operations a second for every number of threads that was tried, by that number."""


@functools.cache
def measured() -> Measured:
    """What was measured on this machine before, or is measured now (about a second)."""
    file = cache_file()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        rates = Rates(**{name: _positive(value) for name, value in kept["rates"].items()})
        return Measured(int(kept["threads"]), rates, dict(kept["tried"]))
    found = measure()
    with contextlib.suppress(OSError, UserError):  # a cache that cannot be written costs a second next time
        write_json(file, {**asdict(found), "processor": processor_name(), "torch": torch.__version__})
    return found


def measure() -> Measured:
    """Measure now: matrix products for each number of threads worth trying, then the rest with the best of them."""
    before = torch.get_num_threads()
    try:
        tried: dict[int, float] = {}
        for threads in thread_candidates():
            torch.set_num_threads(threads)
            tried[threads] = _flops(torch.float32)
        best = min(tried)
        for threads, flops in sorted(tried.items()):
            if flops > WORTH_A_THREAD * tried[best]:
                best = threads
        torch.set_num_threads(best)
        rates = Rates(tried[best], _flops(torch.bfloat16), _bytes_per_second(), _operation_seconds())
    finally:
        torch.set_num_threads(before)
    return Measured(best, rates, {str(threads): flops for threads, flops in tried.items()})


def thread_candidates() -> tuple[int, ...]:
    """Numbers of threads worth trying: one that the user has set, else the cores, and with their hyperthreads."""
    wish = os.environ.get("OMP_NUM_THREADS", "")
    if wish.isdigit() and int(wish) > 0:
        return (int(wish),)
    logical = num_cores()
    cores = min(logical, psutil.cpu_count(logical=False) or logical)
    return tuple(sorted({cores, logical}))


def num_cores() -> int:
    """Processors this process may use, hyperthreads counted, a container's limit included."""
    try:
        number = len(os.sched_getaffinity(0))
    except AttributeError:
        number = os.cpu_count() or 1
    for file in CPU_QUOTAS:
        with contextlib.suppress(OSError, ValueError):
            quota, period = Path(file).read_text(encoding="ascii").split()
            number = min(number, max(1, math.ceil(int(quota) / int(period))))
    return number


@functools.cache
def compiler() -> str:
    """The C++ compiler that torch.compile would call on a processor; empty where there is none."""
    wish = os.environ.get("CXX", "")
    return next((name for name in (wish, "g++", "clang++") if name and shutil.which(name.split()[0])), "")


@functools.cache
def processor_name() -> str:
    """The processor as its maker calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_file() -> Path:
    """Where this machine's rates are remembered."""
    flags = torch.backends.cpu.get_cpu_capability()
    key = f"{processor_name()}|{flags}|{thread_candidates()}|{torch.__version__}"
    return user_cache() / f"machine-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _flops(dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(_SIDE, _SIDE, generator=generator).to(dtype) for _ in range(2))
    return 2 * _SIDE**3 / _best_seconds(lambda: torch.nn.functional.linear(a, b))


def _bytes_per_second() -> float:
    a, b = torch.ones(_TABLE), torch.ones(_TABLE)
    return 3 * 4 * _TABLE / _best_seconds(lambda: a.add_(b))


def _operation_seconds() -> float:
    number, few = 200, torch.ones(8, requires_grad=True)

    def work() -> object:
        result = few
        for _ in range(number):
            result = result + 1.0
        return result

    return _best_seconds(work) / number


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < _SECONDS:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _positive(value: object) -> float:
    number = float(str(value))
    if not 0 < number < float("inf"):
        raise ValueError(value)
    return number

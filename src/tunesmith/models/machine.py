"""What this machine is, and which precision it is good at: measured, because names of processors mislead.

Some processors multiply bfloat16 in hardware and some emulate it many times slower than float32.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from tunesmith.core.errors import UserError
from tunesmith.core.publish import write_json

Precision = Literal["bf16", "fp32"]
Wish = Literal["auto", "bf16", "fp32"]
WORTH_IT = 1.3
"""bf16 is chosen where products are this many times faster; less does not pay for the lost digits."""
_SIZES = (512, 512, 512)
_SECONDS = 0.05


@dataclass(frozen=True)
class Machine:
    """What decides how fast a run is."""

    cores: int
    threads: int
    memory_bytes: int
    available_bytes: int
    processor: str
    device: str
    device_name: str
    device_memory_bytes: int
    precision: Precision
    ratio: float
    """How many times faster bf16 products are than fp32 ones; 0 where it was not measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for environment.json."""
        return asdict(self)


def describe() -> Machine:
    """This machine, with the precision that `auto` chooses on it."""
    memory = psutil.virtual_memory()
    where = device()
    precision, ratio = preferred_precision("auto")
    has_cuda = where.type == "cuda"
    return Machine(
        cores=_num_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=memory.total,
        available_bytes=memory.available,
        processor=processor_name(),
        device=where.type,
        device_name=torch.cuda.get_device_name(where) if has_cuda else "",
        device_memory_bytes=torch.cuda.get_device_properties(where).total_memory if has_cuda else 0,
        precision=precision,
        ratio=ratio,
    )


def device() -> torch.device:
    """Where tensors live: the first CUDA device, or the processor."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def preferred_precision(wish: Wish = "auto") -> tuple[Precision, float]:
    """The precision to compute in, and how many times faster bf16 is than fp32 here (0 where not measured).

    A wish is granted unmeasured. On CUDA `auto` asks the driver; elsewhere it times a matrix product once
    and remembers the answer in the user's cache folder, for this processor and this version of torch.
    """
    if wish != "auto":
        return wish, 0.0
    if device().type == "cuda":
        return ("bf16" if torch.cuda.is_bf16_supported() else "fp32"), 0.0
    ratio = _remembered_ratio()
    return ("bf16" if ratio >= WORTH_IT else "fp32"), ratio


def peak_memory_bytes() -> int:
    """The most memory this process has held: on the device where there is one, otherwise resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if platform.system() == "Darwin" else peak * 1024)


@functools.cache
def processor_name() -> str:
    """The processor as its maker calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure_ratio() -> float:
    """Time of an fp32 matrix product over that of a bf16 one, each the best of several; takes about 0.1 s."""
    rows, inner, columns = _SIZES
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, inner, generator=generator)
    b = torch.randn(columns, inner, generator=generator)
    slow = _best_seconds(a, b)
    fast = _best_seconds(a.bfloat16(), b.bfloat16())
    return slow / fast


def _best_seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    best = float("inf")
    with torch.inference_mode():
        torch.nn.functional.linear(a, b)
        begun = time.perf_counter()
        while time.perf_counter() - begun < _SECONDS:
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            best = min(best, time.perf_counter() - start)
    return best


@functools.cache
def _remembered_ratio() -> float:
    file = _cache_file()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads(file.read_text(encoding="utf-8"))["ratio"])
    ratio = round(measure_ratio(), 2)
    with contextlib.suppress(OSError, UserError):  # a cache that cannot be written costs 0.1 s next time
        write_json(file, {"ratio": ratio, "processor": processor_name(), "torch": torch.__version__})
    return ratio


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(root) if Path(root).is_absolute() else Path("~/.cache").expanduser()
    flags = torch.backends.cpu.get_cpu_capability()
    key = f"{processor_name()}|{flags}|{torch.get_num_threads()}|{torch.__version__}"
    return folder / "tunesmith" / f"precision-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _num_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1

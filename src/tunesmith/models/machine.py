"""What this machine is, and which precision it is good at: measured, because names of processors mislead.

Some processors multiply bfloat16 in hardware and some emulate it many times slower than float32.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import Any, Literal

import psutil
import torch

from tunesmith.models.rates import measured, num_cores, processor_name

Precision = Literal["bf16", "fp32"]
Wish = Literal["auto", "bf16", "fp32"]
WORTH_IT = 1.3
"""bf16 is chosen where products are this many times faster; less does not pay for the lost digits."""


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
        cores=num_cores(),
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

    A wish is granted unmeasured. On CUDA `auto` asks the driver; elsewhere it goes by the machine's rates (rates.py),
    which are measured once.
    """
    if wish != "auto":
        return wish, 0.0
    if device().type == "cuda":
        return ("bf16" if torch.cuda.is_bf16_supported() else "fp32"), 0.0
    ratio = measured().rates.ratio
    return ("bf16" if ratio >= WORTH_IT else "fp32"), ratio


def peak_memory_bytes() -> int:
    """The most memory this process has held: on the device where there is one, otherwise resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if platform.system() == "Darwin" else peak * 1024)

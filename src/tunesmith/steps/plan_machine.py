"""The machine of a plan: this one by measurement, or a named one by its data sheet."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import torch

from tunesmith.models.devices import Device, device_named
from tunesmith.models.machine import Precision, describe, device
from tunesmith.models.memory import free_memory_bytes
from tunesmith.models.rates import measured, processor_name
from tunesmith.training.pace import Pace

CUDA_BYTES = 2**30 * 3 // 4
"""What a CUDA context and its libraries take of a GPU, an assumption."""
PROCESS_BYTES = 2**20 * 660
"""Of a training process on a processor without its tensors: 572 MiB once all that it imports is there (torch 2.13,
transformers 5.23, scikit-learn, matplotlib), and the 128 products whose code is kept."""
USUAL_FACTOR = 1.35
"""By how much real work is slower than the rates say, where nothing was probed: the middle of small models here."""


@dataclass(frozen=True)
class Target:
    """Where a run is to happen."""

    title: str
    is_here: bool
    is_cuda: bool
    memory_bytes: int
    """What the run may take: this machine's free memory (with what this process holds), or all of a named one's."""
    precision: Precision
    """What `model.precision: auto` chooses there."""
    bf16_flops: float
    fp32_flops: float
    bytes_per_second: float
    operation_seconds: float
    factor: float
    """By how much real work takes longer than by these rates, where it is not probed."""
    process_bytes: int
    notes: tuple[str, ...] = field(default=())

    @property
    def device(self) -> str:
        """Its type, as PyTorch names it."""
        return "cuda" if self.is_cuda else "cpu"

    def pace(self, precision: Precision) -> Pace:
        """Its rates for a run of this precision."""
        flops = self.bf16_flops if precision == "bf16" else self.fp32_flops
        return Pace(flops, self.bytes_per_second, self.operation_seconds, self.factor)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes)}


def this_machine() -> Target:
    """The machine that runs this, by what was measured on it."""
    where = device()
    if where.type == "cuda":
        return _this_gpu(where)
    machine, rates = describe(), measured().rates
    resident = psutil.Process().memory_info().rss
    return Target(
        title=f"{processor_name()}, {machine.cores} cores",
        is_here=True,
        is_cuda=False,
        memory_bytes=free_memory_bytes(where) + resident,
        precision=machine.precision,
        bf16_flops=rates.bf16_flops,
        fp32_flops=rates.fp32_flops,
        bytes_per_second=rates.bytes_per_second,
        operation_seconds=rates.operation_seconds,
        factor=USUAL_FACTOR,
        process_bytes=PROCESS_BYTES,
    )


def named_target(name: str) -> Target:
    """A machine by its name in the table of devices, `h100` or `h100x8`.

    Raises:
        UserError: There is none of that name.
    """
    found, number = device_named(name)
    notes = [f"rates of {found.title} are its maker's ({found.source}); {100 * found.efficiency:.0f} % of them assumed"]
    if number > 1:
        notes.append(f"one of the {number} devices is planned: this version trains on one")
    return _of_device(found, f"{found.title}{f' x {number}' if number > 1 else ''}", found.memory_bytes, tuple(notes))


def _this_gpu(where: torch.device) -> Target:
    """The GPU here: its row of the table where its name is known, with its real memory."""
    title = torch.cuda.get_device_name(where)
    words = title.lower().replace(" ", "")
    from tunesmith.models.devices import DEVICES

    known = [key for key in DEVICES if key.partition("-")[0] in words]
    found = DEVICES[max(known, key=len)] if known else DEVICES["a100"]
    total = torch.cuda.get_device_properties(where).total_memory
    source = found.source if known else f"{title} is not in the table, {found.title} stands for it"
    made = _of_device(found, title, total, (f"rates are a data sheet's ({source}), not measured",))
    return Target(**{**vars(made), "is_here": True})


def _of_device(found: Device, title: str, memory_bytes: int, notes: tuple[str, ...]) -> Target:
    return Target(
        title=title,
        is_here=False,
        is_cuda=found.is_cuda,
        memory_bytes=memory_bytes,
        precision="bf16" if found.has_bf16 else "fp32",
        bf16_flops=found.bf16_flops * found.efficiency,
        fp32_flops=found.fp32_flops * found.efficiency,
        bytes_per_second=found.bytes_per_second * 0.8,
        operation_seconds=found.operation_seconds,
        factor=1.0,
        process_bytes=CUDA_BYTES,
        notes=notes,
    )

"""Machines by name, for plans of runs that will happen elsewhere: peak rates and memory from their makers' data sheets.

Rates are those of dense matrix products with fp32 accumulation; makers print twice as much "with sparsity". What a
training reaches of them is an assumption here (`efficiency`), where this machine's own rates are measured (rates.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tunesmith.core.errors import UserError, unknown_name

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator, or the processors of one machine."""

    title: str
    bf16_flops: float
    """Dense bf16 operations a second (fp16 where the device has no bf16)."""
    fp32_flops: float
    """fp32 operations a second; on NVIDIA from Ampere on those of TF32, which training uses there."""
    bytes_per_second: float
    """Bandwidth of its memory."""
    memory_bytes: int
    source: str
    """Where the numbers are from."""
    has_bf16: bool = True
    is_cuda: bool = True
    efficiency: float = 0.55
    """Share of the peak that matrix products reach, an assumption."""
    operation_seconds: float = 8e-6
    """What an operation takes at least: a kernel's launch from Python."""


DEVICES = {
    "b200": Device("NVIDIA B200", 2250e12, 1125e12, 8.0e12, 180 * GIB, "NVIDIA DGX B200 data sheet, an eighth"),
    "h200": Device("NVIDIA H200 SXM", 989e12, 494e12, 4.8e12, 141 * 10**9, "NVIDIA H200 data sheet"),
    "h100": Device("NVIDIA H100 SXM", 989e12, 494e12, 3.35e12, 80 * 10**9, "NVIDIA H100 data sheet"),
    "h100-pcie": Device("NVIDIA H100 PCIe", 756e12, 378e12, 2.0e12, 80 * 10**9, "NVIDIA H100 data sheet"),
    "a100": Device("NVIDIA A100 80GB SXM", 312e12, 156e12, 2.039e12, 80 * GIB, "NVIDIA A100 data sheet"),
    "a100-40": Device("NVIDIA A100 40GB", 312e12, 156e12, 1.555e12, 40 * GIB, "NVIDIA A100 data sheet"),
    "l40s": Device("NVIDIA L40S", 362e12, 183e12, 864e9, 48 * 10**9, "NVIDIA L40S data sheet"),
    "l4": Device("NVIDIA L4", 121e12, 60e12, 300e9, 24 * 10**9, "NVIDIA L4 data sheet, halved: it is with sparsity"),
    "a10g": Device("NVIDIA A10G", 70e12, 35e12, 600e9, 24 * 10**9, "NVIDIA A10G data sheet"),
    "rtx4090": Device("NVIDIA RTX 4090", 165e12, 82.6e12, 1.008e12, 24 * GIB, "NVIDIA Ada architecture paper"),
    "rtx3090": Device("NVIDIA RTX 3090", 71e12, 35.6e12, 936e9, 24 * GIB, "NVIDIA GA102 architecture paper"),
    "t4": Device("NVIDIA T4", 65e12, 8.1e12, 320e9, 16 * 10**9, "NVIDIA T4 data sheet (fp16)", has_bf16=False),
}
"""By the name that `--machine` takes."""


def device_named(text: str) -> tuple[Device, int]:
    """The device, and how many of it: `h100x8` is eight H100.

    Raises:
        UserError: There is no such device in the table.
    """
    name, number = text.strip().lower().replace("_", "-"), 1
    if name not in DEVICES and (found := re.fullmatch(r"(.+)x(\d+)", name)):  # the name itself may hold an x
        name, number = found.group(1), int(found.group(2))
    if name not in DEVICES:
        raise unknown_name("machine", name, DEVICES)
    if number < 1:
        raise UserError(f'"{text}" has no device.', code="bad_machine", remedy="For example: h100x8.")
    return DEVICES[name], number

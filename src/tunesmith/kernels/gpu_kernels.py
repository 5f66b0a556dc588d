"""Which kernel of attention a GPU's packed rows can go through: what each takes, in the order of preference.

`flash_attn` is the package of that name, `varlen` and `flex` are PyTorch's (`torch.nn.attention`), `sdpa` is its kernel
for one example at a time, and `plain` are products without a kernel. What is written here is what their documents and
sources say; which of them a model really gets is decided by trying it on the model (packed_attention.py). Nothing of
it has run on CUDA yet.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

KERNELS = ("flash_attn", "varlen", "flex", "sdpa", "plain")
"""The best first."""
_HALF = (torch.bfloat16, torch.float16)
_OLDEST_FLASH_ATTN = (2, 6)
"""The first with softcapping, and with a backward pass that can be asked to give the same bits each time."""
_WIDEST = 256
"""Of a head, for flash-attention and for PyTorch's form of it."""
_WIDEST_BACKWARD = 192
"""The same for the backward pass of PyTorch's on GPUs with little shared memory (compute capability 8.6, 8.9, 12)."""
_LARGE = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Compute capabilities with the shared memory that wide heads need."""
_NARROWEST_FLEX = 16
"""Triton's products take no fewer columns."""


@dataclass(frozen=True)
class Machine:
    """What a GPU and the packages installed beside it have.

    Attributes:
        capability: The GPU's compute capability.
        flash_attn: The version of the package flash_attn; () where it cannot be imported.
        has_varlen: PyTorch has `torch.nn.attention.varlen` with windows (from 2.11).
        has_triton: Triton is there, which compiles flex attention.
    """

    capability: tuple[int, int]
    flash_attn: tuple[int, ...] = ()
    has_varlen: bool = False
    has_triton: bool = False


@dataclass(frozen=True)
class Wanted:
    """What one layer asks of its attention.

    Attributes:
        dtype: Of queries, keys and values.
        width: Of a head's queries and keys.
        value_width: Of a head's values.
        has_softcap: Scores are capped (Gemma 2).
        has_sinks: There are attention sinks (gpt-oss).
        has_dropout: Probabilities are dropped while it trains.
    """

    dtype: torch.dtype
    width: int
    value_width: int
    has_softcap: bool = False
    has_sinks: bool = False
    has_dropout: bool = False


def machine(device: torch.device) -> Machine:
    """What is there for a GPU."""
    return _machine(torch.cuda.get_device_capability(device))


@cache
def _machine(capability: tuple[int, int]) -> Machine:
    return Machine(capability, _flash_attn(), _has_varlen(), find_spec("triton") is not None)


def why_not(kernel: str, wanted: Wanted, machine: Machine) -> str:
    """Why a kernel cannot do a layer's attention on this machine; empty where it can.

    All of them take causal attention, windows to both sides, and fewer key heads than query heads.
    """
    has_flash = machine.capability >= (8, 0)
    if kernel == "flash_attn":
        if machine.flash_attn < _OLDEST_FLASH_ATTN:
            return "flash_attn 2.6 or newer is not installed"
        return _why_no_flash(wanted, has_flash) or (
            "flash_attn caps no scores with dropout" if wanted.has_softcap and wanted.has_dropout else ""
        )
    if kernel == "varlen":
        if not machine.has_varlen:
            return "PyTorch has no varlen attention"
        if max(wanted.width, wanted.value_width) > _WIDEST_BACKWARD and machine.capability not in _LARGE:
            return f"heads are wider than {_WIDEST_BACKWARD}"
        if wanted.has_softcap or wanted.has_dropout:
            return "PyTorch's varlen attention has no softcapping and no dropout"
        return _why_no_flash(wanted, has_flash)
    if kernel == "flex":
        if not machine.has_triton:
            return "Triton is not installed"
        if min(wanted.width, wanted.value_width) < _NARROWEST_FLEX:
            return f"heads are narrower than {_NARROWEST_FLEX}"
        return "flex attention has no dropout" if wanted.has_dropout else ""
    if kernel == "sdpa":
        return "PyTorch's kernel has no softcapping and no sinks" if wanted.has_softcap or wanted.has_sinks else ""
    assert kernel == "plain", kernel
    return ""


def possible(wants: Iterable[Wanted], machine: Machine) -> tuple[tuple[str, ...], dict[str, str]]:
    """The kernels that can do all layers of a model, best first; and why the others cannot."""
    wants = list(dict.fromkeys(wants))
    reasons = {kernel: next(filter(None, (why_not(kernel, one, machine) for one in wants)), "") for kernel in KERNELS}
    can = tuple(kernel for kernel, reason in reasons.items() if not reason)
    return can, {kernel: reason for kernel, reason in reasons.items() if reason}


def _why_no_flash(wanted: Wanted, has_flash: bool) -> str:
    """What flash-attention's own kernels, wherever they come from, cannot do."""
    if not has_flash:
        return "the GPU is older than compute capability 8.0"
    if wanted.dtype not in _HALF:
        return "flash-attention computes in bf16 or fp16 only"
    if max(wanted.width, wanted.value_width) > _WIDEST:
        return f"heads are wider than {_WIDEST}"
    return "flash-attention has no sinks" if wanted.has_sinks else ""


def _flash_attn() -> tuple[int, ...]:
    """The version of flash_attn; () where it is not there or was built for another PyTorch."""
    try:
        version: str = importlib.import_module("flash_attn").__version__
    except (ImportError, OSError):
        return ()
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _has_varlen() -> bool:
    try:
        varlen = importlib.import_module("torch.nn.attention.varlen")
    except ImportError:
        return False
    return "enable_gqa" in varlen.varlen_attn.__annotations__

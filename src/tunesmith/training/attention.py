"""What packed rows go through on a GPU: checked before weights load, told at the head of a run."""

from __future__ import annotations

import torch
from torch import nn

from tunesmith.core.errors import UserError
from tunesmith.kernels.packed_attention import kernel_of


def require_gpu(wish: str, device: torch.device) -> None:
    """Refuse `train.attention` where there is no GPU whose kernels it could choose from.

    Raises:
        UserError: A kernel is asked for on a CPU.
    """
    if wish != "auto" and device.type == "cpu":
        raise UserError(
            f"train.attention is {wish}, which is a GPU's, and there is no GPU.",
            code="no_gpu",
            where="train.attention",
            remedy="Set train.attention=auto.",
        )


def check_kernel(model: nn.Module, wish: str, *, is_packed: bool) -> None:
    """Refuse to go on with another kernel than the one asked for, or the one that a run has begun with.

    Raises:
        UserError: The kernel cannot do the model's attention here.
    """
    if wish == "auto" or not is_packed or kernel_of(model) == wish:
        return
    raise UserError(
        f"packed rows cannot go through {wish} here: it is not installed, cannot do what the model's layers ask for, "
        "or gives something else than the model.",
        code="no_kernel",
        where="train.attention",
        remedy="Set train.attention=auto. A run goes on with the kernel that it began with: install that, "
        "or begin a new run.",
    )


def packed(model: nn.Module) -> str:
    """The word for packed rows, with the kernel that a GPU's go through."""
    kernel = kernel_of(model)
    return f"packed, attention by {kernel}" if kernel else "packed"

"""AdamW with its two means in 8 bits: a scale for each 256 numbers, and levels that lie closer towards zero.

The mean is kept as sign and the fourth root of its share of the block's greatest, the mean square as the eighth root:
so small numbers keep about the relative precision of large ones, and no mean square but 0 becomes 0. Bytes are rounded
up or down in proportion to where a number lies between two levels, against a threshold that moves by the golden ratio
from step to step: right on average, the same on every machine, and without a random number. Plain rounding would never
let go of a mean that changes by less than half a level in a step, as mean squares do at beta2 = 0.999.
Legend: N blocks of a chunk, S = 256 numbers of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.optim import Optimizer

BLOCK = 256
"""Numbers that share a scale."""
CHUNK_CPU, CHUNK = 1 << 16, 1 << 24
"""Numbers at once: on a processor what its cache holds. More would cost memory, which is to be saved."""
SIGNED, UNSIGNED = 127, 255
"""Levels above zero."""
GOLDEN = (math.sqrt(5) - 1) / 2


class BlockwiseAdamW(Optimizer):
    """AdamW (arXiv:1711.05101) over fp32 tensors, with blockwise 8-bit state (arXiv:2110.02861)."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"lr": 1e-3, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every tensor that has a gradient."""
        assert closure is None, "gradients are there already"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter] or _fresh(parameter)
        self.state[parameter] = state
        state["step"] = state["step"].cpu() + 1  # it may come back from a checkpoint onto the device
        step = int(state["step"])
        beta1, beta2 = group["betas"]
        threshold_S = _threshold(step, parameter.device)
        size, parts = parameter.numel(), CHUNK_CPU if parameter.device.type == "cpu" else CHUNK
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        weights, gradients = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]
        for first in range(0, size, parts):
            last = min(first + parts, size)
            rows = slice(first // BLOCK, -(-last // BLOCK))
            gradient_NS = pad(gradients[first:last], (0, -(last - first) % BLOCK)).view(-1, BLOCK)
            mean_NS = signed_numbers(state["mean"][rows], state["mean_scale"][rows]).lerp_(gradient_NS, 1 - beta1)
            square_NS = numbers(state["square"][rows], state["square_scale"][rows])
            square_NS.mul_(beta2).addcmul_(gradient_NS, gradient_NS, value=1 - beta2)
            state["mean"][rows], state["mean_scale"][rows] = signed_bytes(mean_NS, threshold_S)
            state["square"][rows], state["square_scale"][rows] = unsigned_bytes(square_NS, threshold_S)
            change_NS = mean_NS.div_(square_NS.div_(1 - beta2**step).sqrt_().add_(group["eps"]))
            weights[first:last].add_(change_NS.view(-1)[: last - first], alpha=-group["lr"] / (1 - beta1**step))


def signed_bytes(values_NS: Tensor, threshold_S: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers as int8 [N, S] and each block's greatest size [N]; level k stands for (k / 127)^4 of it."""
    sizes_NS = values_NS.abs()
    scale_N = sizes_NS.amax(1)
    share_NS = sizes_NS.div_(_above_zero(scale_N))
    level_NS = share_NS.sqrt().sqrt_().mul_(SIGNED).floor_().clamp_(max=SIGNED - 1)
    low_NS = (level_NS / SIGNED).square_().square_()
    step_NS = ((level_NS + 1) / SIGNED).square_().square_().sub_(low_NS)
    level_NS.add_(share_NS.sub_(low_NS).div_(step_NS) > threshold_S)
    return level_NS.copysign_(values_NS).to(torch.int8), scale_N


def unsigned_bytes(values_NS: Tensor, threshold_S: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers from 0 as uint8 [N, S] and each block's greatest [N]; level k stands for (k / 255)^8 of it."""
    scale_N = values_NS.amax(1)
    share_NS = values_NS / _above_zero(scale_N)
    level_NS = share_NS.sqrt().sqrt_().sqrt_().mul_(UNSIGNED).floor_().clamp_(max=UNSIGNED - 1)
    low_NS = (level_NS / UNSIGNED).square_().square_().square_()
    step_NS = ((level_NS + 1) / UNSIGNED).square_().square_().square_().sub_(low_NS)
    level_NS.add_(share_NS.sub_(low_NS).div_(step_NS) > threshold_S)
    return level_NS.to(torch.uint8), scale_N


def signed_numbers(bytes_NS: Tensor, scale_N: Tensor) -> Tensor:
    """What `signed_bytes` wrote, in fp32."""
    root_NS = bytes_NS.float().div_(SIGNED)
    size_NS = root_NS.abs()
    return root_NS.mul_(size_NS).mul_(size_NS.square_()).mul_(scale_N[:, None])


def numbers(bytes_NS: Tensor, scale_N: Tensor) -> Tensor:
    """What `unsigned_bytes` wrote, in fp32."""
    return bytes_NS.float().div_(UNSIGNED).square_().square_().square_().mul_(scale_N[:, None])


def _above_zero(scale_N: Tensor) -> Tensor:
    return scale_N.clamp(min=torch.finfo(scale_N.dtype).tiny)[:, None]


def _fresh(parameter: Tensor) -> dict[str, Tensor]:
    """A state of zeros."""
    assert parameter.dtype == torch.float32 and parameter.is_contiguous(), (parameter.dtype, parameter.stride())
    rows, where = -(-parameter.numel() // BLOCK), parameter.device
    return {
        "step": torch.zeros(()),
        "mean": torch.zeros(rows, BLOCK, dtype=torch.int8, device=where),
        "mean_scale": torch.zeros(rows, device=where),
        "square": torch.zeros(rows, BLOCK, dtype=torch.uint8, device=where),
        "square_scale": torch.zeros(rows, device=where),
    }


def _threshold(step: int, device: torch.device) -> Tensor:
    """Above which share of a level a number is rounded up, for each place of a block: [S], even over the steps."""
    return (_offsets(device) + step * GOLDEN % 1.0).remainder_(1.0)


@cache
def _offsets(device: torch.device) -> Tensor:
    """So that the numbers of a block are not all rounded the same way in a step."""
    return (torch.arange(BLOCK, device=device) * math.sqrt(2)).remainder_(1.0)

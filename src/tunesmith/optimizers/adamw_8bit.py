"""AdamW that remembers its two means in 8 bits, a quarter of the memory.

Blockwise quantisation (arXiv:2110.02861) with a scale for each 256 weights. Means are rounded up or down so that they
are right on average: a change smaller than a level is not lost, however often it comes. Tensors of fewer than 4,096
weights keep fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunesmith.optimizers.base import STEP_BYTES, Decay, Optimizer, Trained, adam_bytes, groups

if TYPE_CHECKING:
    import torch

BLOCK = 256
"""Weights that share a scale."""
SMALLEST = 4096
"""Weights of a tensor from which it is quantised, as in the paper's code."""


class AdamW8bit(Optimizer):
    """It remembers about 2 bytes a trained weight; a step costs ten times AdamW's, which is little beside the model."""

    beta1: Decay = 0.9
    """Decay of the gradient's mean."""
    beta2: Decay = 0.999
    """Decay of the gradient's square."""

    def make(self, tensors: Sequence[Trained]) -> torch.optim.Optimizer:
        import torch

        from tunesmith.kernels.blockwise_adam import BlockwiseAdamW
        from tunesmith.kernels.joint_optimizer import JointOptimizer

        large, small = _split(tensors)
        betas = (self.beta1, self.beta2)
        parts: list[torch.optim.Optimizer] = [BlockwiseAdamW(groups(large), betas=betas)] if large else []
        parts += [torch.optim.AdamW(groups(small), betas=betas, fused=True)] if small else []
        return JointOptimizer(parts)

    def state_bytes(self, tensors: Sequence[Trained]) -> int:
        large, small = _split(tensors)
        blocks = [-(-one.parameter.numel() // BLOCK) for one in large]
        return sum(2 * (BLOCK + 4) * number + STEP_BYTES for number in blocks) + adam_bytes(small)


def _split(tensors: Sequence[Trained]) -> tuple[list[Trained], list[Trained]]:
    """Those that are quantised, and the others."""
    large = [one for one in tensors if one.parameter.numel() >= SMALLEST]
    return large, [one for one in tensors if one.parameter.numel() < SMALLEST]

"""AdamW: each weight has a step of its own, from two running means of its gradient.

arXiv:1711.05101, algorithm 2. PyTorch's fused kernel: one pass over weights, gradients and moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunesmith.optimizers.base import Decay, Optimizer, Trained, adam_bytes, groups

if TYPE_CHECKING:
    import torch


class AdamW(Optimizer):
    """The default. It remembers 8 bytes a trained weight."""

    beta1: Decay = 0.9
    """Decay of the gradient's mean."""
    beta2: Decay = 0.999
    """Decay of the gradient's square."""

    def make(self, tensors: Sequence[Trained]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(groups(tensors), betas=(self.beta1, self.beta2), fused=True)

    def state_bytes(self, tensors: Sequence[Trained]) -> int:
        return adam_bytes(tensors)

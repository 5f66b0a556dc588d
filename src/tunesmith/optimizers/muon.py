"""Muon: the step of a matrix is its momentum with all singular values made alike.

https://kellerjordan.github.io/posts/muon, PyTorch's implementation, for matrices inside the blocks; embeddings, head,
norms and biases get AdamW. Its steps are scaled to AdamW's root mean square, 0.2 sqrt(max(rows, columns)), so learning
rate and weight decay are AdamW's too (arXiv:2502.16982, eq. 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from tunesmith.core.errors import UserError
from tunesmith.optimizers.base import Decay, Optimizer, Trained, adam_bytes, groups

if TYPE_CHECKING:
    import torch

_REMEDY = "Set method=full (or last_k), or train.optimizer=adamw."


class Muon(Optimizer):
    """For full training. It remembers 4 bytes a weight of the blocks' matrices and 8 of others."""

    momentum: Decay = 0.95
    """Decay of the gradient's mean, with Nesterov's look ahead."""
    iterations: int = Field(default=5, ge=1, le=20)
    """Newton-Schulz steps towards equal singular values."""
    beta1: Decay = 0.9
    """AdamW's decay of the gradient's mean, for what is no matrix of a block."""
    beta2: Decay = 0.999
    """AdamW's decay of the gradient's square."""

    def check_method(self, name: str, *, trains_base_weights: bool) -> None:
        if not trains_base_weights:
            raise UserError(
                f"muon is for the model's own matrices, and {name} trains an adapter beside them.",
                code="optimizer_unfit",
                where="train.optimizer",
                remedy=_REMEDY,
            )

    def make(self, tensors: Sequence[Trained]) -> torch.optim.Optimizer:
        import torch

        from tunesmith.kernels.joint_optimizer import JointOptimizer

        hidden, others = _split(tensors)
        if not hidden:
            raise UserError(
                "no matrix of a block trains, and muon is for these.",
                code="optimizer_unfit",
                where="train.optimizer",
                remedy=_REMEDY,
            )
        parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                groups(hidden), momentum=self.momentum, ns_steps=self.iterations, adjust_lr_fn="match_rms_adamw"
            )
        ]
        if others:
            parts.append(torch.optim.AdamW(groups(others), betas=(self.beta1, self.beta2), fused=True))
        return JointOptimizer(parts)

    def state_bytes(self, tensors: Sequence[Trained]) -> int:
        hidden, others = _split(tensors)
        return sum(one.num_bytes for one in hidden) + adam_bytes(others)


def _split(tensors: Sequence[Trained]) -> tuple[list[Trained], list[Trained]]:
    """Matrices of the blocks, and the others."""
    return [one for one in tensors if one.is_hidden], [one for one in tensors if not one.is_hidden]

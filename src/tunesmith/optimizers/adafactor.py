"""Adafactor: of each matrix it remembers the mean squares of rows and columns only.

arXiv:1804.04235, PyTorch's implementation. By default the step is not multiplied by the weights' own size, so learning
rates are those of AdamW; T5's recipe (0.001 relative to the weights) is `scale_by_weights: true`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from tunesmith.optimizers.base import STEP_BYTES, Optimizer, Trained, groups

if TYPE_CHECKING:
    import torch

TINY = 1e-16
"""Least root mean square of a gradient. PyTorch's 1e-7 is above real ones, whose shape would then be lost; its square
must be an fp32 number, or a row without gradients would become 0/0."""


class Adafactor(Optimizer):
    """It remembers almost nothing, and has no momentum."""

    beta2_decay: float = Field(default=-0.8, lt=0)
    """The running mean of squares forgets 1 - t^this at step t (section 7.2)."""
    clip: float = Field(default=1.0, ge=1)
    """Greatest root mean square of a tensor's step before the learning rate (section 6)."""
    scale_by_weights: bool = False
    """Multiply a tensor's step by the root mean square of its weights, 0.001 at least (section 8)."""

    def make(self, tensors: Sequence[Trained]) -> torch.optim.Optimizer:
        import torch

        least = 1e-3 if self.scale_by_weights else 1.0
        return torch.optim.Adafactor(groups(tensors), beta2_decay=self.beta2_decay, d=self.clip, eps=(TINY, least))

    def state_bytes(self, tensors: Sequence[Trained]) -> int:
        return sum(_numbers(one) * one.parameter.element_size() + STEP_BYTES for one in tensors)


def _numbers(one: Trained) -> int:
    """How many mean squares are kept of a tensor."""
    shape, size = one.parameter.shape, one.parameter.numel()
    return size if len(shape) < 2 else size // shape[-1] + size // shape[-2]

"""What an optimiser is: it turns the gradients of a step into changes of what trains, and says what it remembers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.core.plugins import Plugin

if TYPE_CHECKING:
    import torch

Decay = Annotated[float, Field(ge=0, lt=1)]
"""How much of a running mean is kept at each step."""
STEP_BYTES = 4
"""The count of steps that torch's optimisers keep beside each tensor, an fp32 scalar."""


@dataclass(frozen=True)
class Trained:
    """One tensor that trains, and how."""

    parameter: torch.nn.Parameter
    """Where only bytes are asked for it may be on torch's meta device."""
    decay: float = 0.0
    """Decoupled weight decay."""
    factor: float = 1.0
    """What the step's learning rate is multiplied by."""
    is_hidden: bool = False
    """Whether it is a matrix inside the blocks: no embedding, head, norm or bias."""

    @property
    def num_bytes(self) -> int:
        return self.parameter.numel() * self.parameter.element_size()


class Optimizer(Plugin):
    """How a step changes the weights. Its learning rate comes from `train.lr` and its schedule, times each factor."""

    @abstractmethod
    def make(self, tensors: Sequence[Trained]) -> torch.optim.Optimizer:
        """The optimiser over these tensors; each of its groups keeps its `factor`.

        Raises:
            UserError: Nothing of what trains is what this optimiser is for.
        """

    @abstractmethod
    def state_bytes(self, tensors: Sequence[Trained]) -> int:
        """What it remembers between steps, in bytes, exactly: the moments and counts, without gradients."""

    def check_method(self, name: str, *, trains_base_weights: bool) -> None:
        """Refuse a method whose weights this optimiser is not for, before any weight is loaded.

        Raises:
            UserError: It is, with the reason.
        """


def groups(tensors: Sequence[Trained]) -> list[dict[str, Any]]:
    """The tensors as torch's optimisers take them, those of equal decay and factor together, in order."""
    found: dict[tuple[float, float], list[Any]] = {}
    for one in tensors:
        found.setdefault((one.decay, one.factor), []).append(one.parameter)
    return [
        {"params": parameters, "weight_decay": decay, "factor": factor} for (decay, factor), parameters in found.items()
    ]


def adam_bytes(tensors: Sequence[Trained]) -> int:
    """Adam's two moments in the tensors' own type."""
    return sum(2 * one.num_bytes + STEP_BYTES for one in tensors)

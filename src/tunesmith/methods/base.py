"""What a method is: it decides which parameters train, and how they are saved, loaded and merged."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import Plugin

if TYPE_CHECKING:
    from torch.nn import Module


class Method(Plugin):
    """Which parameters train. A new method must write `attach`; the rest has defaults."""

    learning_rate: ClassVar[float] = 5e-5
    """The peak learning rate used where the recipe says `train.lr: auto`."""
    new_head_factor: ClassVar[float] = 1.0
    """By what a new head's learning rate is above that of the rest, where `train.head_lr` is `auto`.

    The rest begins trained, or as no change of what is; the head begins at random and has to get somewhere first. So
    methods with a small rate of their own give it 10 (measured, docs/log.md), the others what they have.
    """
    trains_base_weights: ClassVar[bool] = False
    """Whether the base's own weights change, so that they are kept in fp32 while training."""
    is_adapter: ClassVar[bool] = False
    """Whether the result is a small set of weights beside an untouched base."""
    starts_as_base: ClassVar[bool] = True
    """Whether the first output is the base's, as the method's paper promises."""
    can_merge: ClassVar[bool] = True
    """Whether its result can become a plain model with the same outputs."""

    def check_task(self, task: str) -> None:
        """Refuse a task this method cannot train for, before any weight is loaded.

        Raises:
            UserError: It cannot, with the reason.
        """

    def check_model(self, config: Any, task: str) -> None:
        """Refuse a model this method cannot train for a task, by its transformers configuration, before weights load.

        Raises:
            UserError: It cannot, with the reason.
        """

    def check_quantized(self, bits: int) -> None:
        """Refuse a base whose matrices have so many bits (4 or 8), before any weight is loaded.

        Raises:
            UserError: The method needs the matrices themselves, with the reason.
        """

    @abstractmethod
    def attach(self, model: Module) -> Module:
        """The model to train, with `requires_grad` set on exactly what this method trains."""

    def learning_rate_factor(self, parameter: str) -> float:
        """What the learning rate is multiplied by for the weight of this name (LoRA+: more for B than for A)."""
        return 1.0

    def num_positions(self) -> int:
        """How many positions of the model's context are taken before the first token of a text."""
        return 0

    def decays(self, parameter: str) -> bool:
        """Whether weight decay may act on this matrix; it would pull a factor that begins at one to 0."""
        return True

    def num_frozen_blocks(self, model: Module) -> int:
        """How many blocks, from the first (an encoder's before its decoder's), give a row the same in every epoch.

        They and everything below them are frozen and in evaluation mode; training then runs them once a row.
        """
        return 0

    def save(self, model: Module, folder: Path) -> None:
        """Write what was trained so that transformers or peft alone can open it."""
        raise NotImplementedError

    def load(self, model: Module, folder: Path) -> Module:
        """The base model with what `save` wrote. A missing or unexpected key is an error."""
        raise NotImplementedError

    def merge(self, model: Module) -> Module:
        """A plain transformers model with the same outputs.

        Raises:
            UserError: The method cannot be merged, with the reason.
        """
        raise UserError(f"{self.name} cannot be merged into the base model.", code="cannot_merge")

    def disabled(self, model: Module) -> AbstractContextManager[Any]:
        """Within it the model answers as the base did.

        Raises:
            UserError: The base's weights were changed, so there is nothing to go back to.
        """
        raise UserError(f"{self.name} changes the base's weights; they cannot be switched off.", code="cannot_disable")

    def set_training(self, model: Module) -> None:
        """Put the model into training mode (frozen parts may stay in evaluation mode)."""
        model.train()

    def summary(self) -> str:
        """The method in a few words for tables: `LoRA, rank 16`."""
        settings = ", ".join(f"{key} {value}" for key, value in self.changed().items())
        return f"{self.name}, {settings}" if settings else self.name

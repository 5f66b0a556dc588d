"""What all methods share that PEFT has as a type: PEFT attaches, saves and opens them.

A plug-in of `methods/` may not import another one, so this stands here; like them it imports without torch.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.methods.base import Method

if TYPE_CHECKING:
    from torch.nn import Module


class PeftMethod(Method):
    """A method that PEFT has as a type: a new one must write `peft_config`."""

    is_adapter: ClassVar[bool] = True

    @abstractmethod
    def peft_config(self, model: Module) -> Any:
        """PEFT's configuration of this method for a model.

        Raises:
            UserError: The method does not fit the model, with the reason.
        """

    def attach(self, model: Module) -> Module:
        """PEFT's wrapper around the model: only the adapter trains (and a classifier's head), in fp32."""
        from tunesmith.models.adapters import new_adapter

        adapted: Module = new_adapter(model, self.peft_config(model))
        return adapted

    def save(self, model: Module, folder: Path) -> None:
        """adapter_config.json and adapter_model.safetensors, as peft reads them."""
        from tunesmith.models.adapters import save_adapter

        save_adapter(model, folder)

    def load(self, model: Module, folder: Path) -> Module:
        """The base model with the saved adapter on it, ready to train on."""
        from tunesmith.models.adapters import attach_adapter

        loaded: Module = attach_adapter(model, folder, is_trainable=True)
        return loaded

    def merge(self, model: Module) -> Module:
        """The base with the adapter's update added to its weights, in fp32; the adapter is gone from `model`."""
        from tunesmith.models.adapters import merge_adapter

        return merge_adapter(model)

    def disabled(self, model: Module) -> AbstractContextManager[Any]:
        """Within it the adapter is left out; a classifier's head is the one the base came with."""
        from tunesmith.models.adapters import without_adapter

        return without_adapter(model)

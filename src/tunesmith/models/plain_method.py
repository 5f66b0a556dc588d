"""What all methods share that train some of the model's own weights: the result is a plain transformers folder.

A plug-in of `methods/` may not import another one, so this stands here; like them it imports without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.methods.base import Method

if TYPE_CHECKING:
    from torch.nn import Module


class PlainMethod(Method):
    """A method that adds nothing to the model: a new one must write `attach`."""

    def save(self, model: Module, folder: Path) -> None:
        """A transformers folder in fp32 safetensors, frozen weights included."""
        from tunesmith.models.weights import save_plain

        save_plain(model, folder)

    def load(self, model: Module, folder: Path) -> Module:
        """The model of the folder, ready to train on."""
        from tunesmith.models.weights import load_plain

        return load_plain(self.attach(model), folder)

    def merge(self, model: Module) -> Module:
        """The model itself: it is plain already."""
        return model

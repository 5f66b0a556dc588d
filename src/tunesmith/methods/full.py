"""Train every weight of the model.

The learning rate is the middle of those BERT was fine-tuned with (arXiv:1810.04805, appendix A.3).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tunesmith.methods.base import Method

if TYPE_CHECKING:
    from torch.nn import Module


class Full(Method):
    """All parameters train; the result is a plain transformers folder."""

    learning_rate: ClassVar[float] = 5e-5
    trains_base_weights: ClassVar[bool] = True

    def attach(self, model: Module) -> Module:
        """The same model with every parameter training."""
        return model.requires_grad_(True)

    def save(self, model: Module, folder: Path) -> None:
        """A transformers folder in fp32 safetensors."""
        from tunesmith.models.weights import save_plain

        save_plain(model, folder)

    def load(self, model: Module, folder: Path) -> Module:
        """The model of the folder, ready to train on."""
        from tunesmith.models.weights import load_plain

        return load_plain(self.attach(model), folder)

    def merge(self, model: Module) -> Module:
        """The model itself: it is plain already."""
        return model

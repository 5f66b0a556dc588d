"""A model's structure without its weights, so that a method can refuse a model before anything is read."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module
from transformers import AutoModel

from tunesmith.models.quiet import quiet


def skeleton(config: Any) -> Module | None:
    """The backbone of a transformers configuration on torch's `meta` device: names and shapes, no memory.

    None where transformers knows no backbone for it (code that comes with the model): its weights must be read first.
    """
    try:
        with quiet(), torch.device("meta"):
            model: Module = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, NotImplementedError, ImportError):
        return None
    return model

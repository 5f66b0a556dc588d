"""A device with little memory, for tests of what happens when it runs out."""

from __future__ import annotations

import torch

from tunesmith.models.anatomy import blocks


class Narrow:
    """A device that holds so many tokens of a pass (or of one with gradients), as a hook on the first block."""

    def __init__(self, model, limit, *, only_training=False, until_recomputed=False):
        self.limit, self.only_training, self.until_recomputed = limit, only_training, until_recomputed
        self.sizes = []
        self.block = blocks(model)[0]
        self.handle = self.block.register_forward_pre_hook(self.enter, with_kwargs=True)

    def enter(self, module, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        size = states.shape[0] * states.shape[1]
        is_roomy = self.until_recomputed and "forward" in vars(self.block)
        is_watched = torch.is_grad_enabled() or not self.only_training
        if size > self.limit and is_watched and not is_roomy:
            raise torch.OutOfMemoryError(f"tried to allocate {size} tokens")
        self.sizes += [size] if is_watched else []

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        self.handle.remove()

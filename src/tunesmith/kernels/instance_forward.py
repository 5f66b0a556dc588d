"""Forwards that kernels put on single modules, and how to be without them.

A kernel replaces the forward of an instance, never of a class, so other models in the process are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import nn

Forward = TypeVar("Forward", bound=Callable[..., Any])
_MARK = "is_instance_forward"


def own_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the module's class computes."""
    return type(module).forward(module, *args, **kwargs)


def instance_forward(function: Forward, compiled: Callable[..., Any] = own_forward) -> Forward:
    """Mark a function that is bound to single modules as their `forward`.

    `torch.compile` sees `compiled` instead of it: the compiler fuses by itself what these kernels fuse.
    """

    @wraps(function)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return compiled(self, *args, **kwargs)
        return function(self, *args, **kwargs)

    setattr(forward, _MARK, True)
    return cast(Forward, forward)


def take_off(model: nn.Module) -> int:
    """Give every module its class's forward back where a kernel has put another; how many there were."""
    found = _replaced(model)
    for module in found:
        del module.forward
    return len(found)


@contextmanager
def plain_forwards(model: nn.Module) -> Iterator[None]:
    """Within it no kernel's forward is in place (what compiles whole blocks fuses them itself)."""
    kept = {module: vars(module)["forward"] for module in _replaced(model)}
    take_off(model)
    try:
        yield
    finally:
        for module, forward in kept.items():
            module.forward = forward


def _replaced(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if getattr(vars(module).get("forward"), _MARK, False)]

"""States that can be made again from what is kept anyway: their readers keep that instead for the backward pass.

The input of a norm is kept by the norm; linear layers behind it would keep its output, too, which one cheap sweep makes
again. What a tensor was made from is noted on the tensor itself, so a layer that gets another one keeps that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_NOTE = "made_again"


class HowMade(NamedTuple):
    """How a tensor is made, to the bit."""

    make: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def note_how_made(made: Tensor, make: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Note that `make(*inputs)` gives `made` again; for inputs that somebody keeps for the backward pass."""
    if torch.is_grad_enabled():
        setattr(made, _NOTE, (made._version, HowMade(make, tuple(one.detach() for one in inputs))))


def how_made(tensor: Tensor) -> HowMade:
    """How to have the tensor again: as was noted, or by keeping it where nothing was or it was changed since."""
    version, noted = getattr(tensor, _NOTE, (None, None))
    return noted if noted is not None and version == tensor._version else HowMade(_as_it_is, (tensor,))


def _as_it_is(kept: Tensor) -> Tensor:
    return kept

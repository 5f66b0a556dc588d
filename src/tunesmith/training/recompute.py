"""Which blocks are computed again in the backward pass: as many as memory needs, decided once before the first step.

A trial on one row tells what each block keeps for the backward pass; that, times the largest micro-batch, is set
against the memory that is free. Computing all blocks again costs a forward pass more, a third of full training's time
and half of an adapter's, so none is computed again without need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from tunesmith.core.errors import UserError
from tunesmith.core.quantities import gib
from tunesmith.kernels.recompute import Kept
from tunesmith.models.anatomy import blocks, encoder_blocks
from tunesmith.models.virtual_tokens import is_prefix, prompt_config
from tunesmith.training.choices import Choice

SHARE = 0.9
"""Of the free memory that a step may take; the rest is for what PyTorch's kernels borrow."""
Wish = int | Literal["auto", "none", "all"]


def recomputable(model: nn.Module, num_frozen: int) -> list[nn.Module]:
    """The blocks that can be computed again, in the order they run; frozen ones below what trains keep nothing."""
    if why_not_recomputed(model):
        return []
    return [*encoder_blocks(model), *blocks(model)][num_frozen:]


def why_not_recomputed(model: Any) -> str:
    """Why no block of this model can be computed again; empty where all can."""
    config = prompt_config(model)
    return "its prefix is a cache, which would grow a second time" if config is not None and is_prefix(config) else ""


def refuse_recompute(model: Any, wish: Wish) -> None:
    """Let pass what can be done.

    Raises:
        UserError: Blocks are to be computed again, and cannot be.
    """
    reason = why_not_recomputed(model)
    if wish not in ("auto", "none", 0) and reason:
        raise UserError(
            f"blocks cannot be computed again with this method: {reason}.",
            code="cannot_recompute",
            where="train.recompute",
            remedy="Set train.recompute=none, and train.micro_tokens lower where memory is short.",
        )


def choose_recompute(
    wish: Wish, num_blocks: int, *, probe: Callable[[], Kept], free: Callable[[], int], to_come: int
) -> Choice:
    """How many blocks, from the first, are computed again, and why.

    `probe` tells what the largest micro-batch would keep, `to_come` is what gradients and the optimiser will take, and
    `free` the free memory, all in bytes.
    """
    if wish in ("none", 0) or not num_blocks:
        return Choice(0, "train.recompute is none" if num_blocks else "no block can be computed again")
    if wish != "auto":
        number = num_blocks if wish == "all" else min(int(wish), num_blocks)
        return Choice(number, f"train.recompute is {wish}")
    room = free()  # before the trial, whose memory stays with the process
    kept = probe()
    whole = to_come + kept.total(0)
    if whole <= SHARE * room:
        return Choice(0, f"a step takes {gib(whole)} of {gib(room)} free")
    number = next((n for n in range(1, num_blocks) if to_come + kept.total(n) <= SHARE * room), num_blocks)
    least = to_come + kept.total(number)
    left = "" if least <= SHARE * room else "; even so it may not fit"
    return Choice(number, f"a step would take {gib(whole)} and {gib(room)} are free; so it takes {gib(least)}{left}")


def trial_group(groups: Sequence[Sequence[int]], lengths: Any, *, is_packed: bool) -> tuple[int, float]:
    """The longest row of the group with most tokens, and how many times its tokens the group has, padding included."""
    sizes = [_num_tokens(group, lengths, is_packed=is_packed) for group in groups]
    group = groups[max(range(len(groups)), key=sizes.__getitem__)]
    row = max(group, key=lambda one: int(lengths[one]))
    return row, max(sizes) / max(1, int(lengths[row]))


def _num_tokens(group: Sequence[int], lengths: Any, *, is_packed: bool) -> int:
    sizes = [int(lengths[row]) for row in group]
    return sum(sizes) if is_packed else max(sizes) * len(sizes)


class RandomState:
    """The state of the generators that dropout draws from, to try a pass again as if it had not been."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)

"""Blocks whose states are computed again in the backward pass instead of being kept from the forward pass.

PyTorch's checkpointing, non-reentrant, around the blocks that are named; random numbers, precision and the borders of
packed examples are those of the forward pass again, so gradients are the same bit for bit. What is outermost in a
block is this: a block may be compiled, its layers fused, and all of that is computed again. Where a forward pass makes
no gradients (validation, answers), blocks run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache


class Recomputation:
    """The first `number` of these blocks are computed again."""

    def __init__(self, blocks: Sequence[nn.Module], number: int = 0) -> None:
        self.blocks = tuple(blocks)
        self._before: list[Any] = []
        self.use(number)

    @property
    def number(self) -> int:
        return len(self._before)

    def use(self, number: int) -> None:
        """Compute so many blocks again from now on; 0 leaves every block as it was found."""
        assert 0 <= number <= len(self.blocks), (number, len(self.blocks))
        while self.number > number:
            block, forward = self.blocks[self.number - 1], self._before.pop()
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward
        for block in self.blocks[self.number : number]:
            self._before.append(vars(block).get("forward"))
            block.forward = _again(block.forward)


@dataclass(frozen=True)
class Kept:
    """What a forward pass keeps for the backward pass, in bytes."""

    blocks: tuple[int, ...]
    """Of each block."""
    inputs: tuple[int, ...]
    """What is left of each block where it is computed again: the states that go in."""
    rest: int
    """Outside the blocks: embeddings, head, loss."""
    copies: int
    """Copies of weights in another type, which do not grow with the batch."""

    def scaled(self, factor: float) -> Kept:
        """The same for a batch so many times as large."""
        return Kept(
            tuple(round(factor * one) for one in self.blocks),
            tuple(round(factor * one) for one in self.inputs),
            round(factor * self.rest),
            self.copies,
        )

    def total(self, number: int) -> int:
        """What a pass holds at most where the first `number` blocks are computed again, one block's own work included.

        When the backward pass comes to a recomputed block, those that were kept are given back already.
        """
        kept = sum(self.inputs[:number]) + sum(self.blocks[number:])
        return self.copies + self.rest + kept + max(self.blocks, default=0)


def kept_bytes(model: nn.Module, blocks: Sequence[nn.Module], run: Callable[[], object]) -> Kept:
    """What `run`, which computes a loss with `model`, would keep; nothing of it is held, so it takes little memory.

    Storage that two operations keep counts once. What an operation keeps outside of autograd's own record is not seen.
    """
    count = _Count(model, len(blocks))
    handles = [handle for place, block in enumerate(blocks) for handle in count.watch(block, place)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(count.keep, _never):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return Kept(tuple(count.blocks), tuple(count.inputs), count.rest, count.copies)


@dataclass
class _Count:
    """The sums of `kept_bytes` as they grow."""

    model: nn.Module
    num_blocks: int
    rest: int = 0
    copies: int = 0
    place: int | None = None
    alive: list[Tensor] = field(default_factory=list)
    """What the present block and the one before keep: a freed address may be given out again."""
    seen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.blocks, self.inputs = [0] * self.num_blocks, [0] * self.num_blocks
        weights = [*self.model.parameters(), *self.model.buffers()]
        self.weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self.casts = {2 * weight.numel() for weight in weights if weight.ndim >= 2}
        self.former: list[Tensor] = []

    def watch(self, block: nn.Module, place: int) -> list[Any]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            states = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
            self.inputs[place] = 0 if states is None or not _is_traced(states, module) else states.nbytes
            self._turn(place)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._turn(None)

        return [
            block.register_forward_pre_hook(enter, with_kwargs=True),
            block.register_forward_hook(leave),
        ]

    def keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in self.weights or address in self.seen:
            return
        self.seen.add(address)
        self.alive.append(tensor)
        if storage.nbytes() in self.casts:
            self.copies += storage.nbytes()
        elif self.place is None:
            self.rest += storage.nbytes()
        else:
            self.blocks[self.place] += storage.nbytes()

    def _turn(self, place: int | None) -> None:
        self.place = place
        if place is not None:
            self.former, self.alive = self.alive, []
            self.seen = {tensor.untyped_storage().data_ptr() for tensor in self.former}


def _is_traced(states: Tensor, block: nn.Module) -> bool:
    """Whether a backward pass goes through a block at all."""
    return states.requires_grad or any(weight.requires_grad for weight in block.parameters())


def _never(kept: object) -> Tensor:
    raise AssertionError("a trial has no backward pass")


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass of a block, checkpointed."""

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        now = copy_context()  # the borders of packed examples; on a GPU the backward pass has a thread of its own

        def run(*args: Any, **kwargs: Any) -> Any:
            return now.copy().run(forward, *args, **kwargs)

        given = {name: _without_cache(one) for name, one in kwargs.items()}
        return checkpoint(run, *[_without_cache(one) for one in args], use_reentrant=False, **given)

    return checkpointed


def _without_cache(argument: Any) -> Any:
    """A cache of keys and values would grow a second time, and in training nothing reads it."""
    return None if isinstance(argument, Cache) else argument

"""Run frozen blocks once a row: keep what comes out of the last of them, and hand it back instead of running them.

Embeddings, masks and positions are computed as always: they are cheap, and the blocks above read them. The plain
reference is the model itself with every block run.
Legend: B rows of a batch, T tokens, D width, N kept positions of all rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FrozenBlocks:
    """Blocks in the order they run, all of them skipped in a replay; the last one's output is what is kept."""

    blocks: tuple[nn.Module, ...]
    num_outputs: int = 0
    """0 where a block returns its states alone; otherwise the length of its tuple, whose first entry they are."""

    def output(self, states_BTD: Tensor) -> Any:
        """The states in the form in which a block returns them; what else it would return is for skipped blocks."""
        return (states_BTD, *[None] * (self.num_outputs - 1)) if self.num_outputs else states_BTD


class _Reached(Exception):  # noqa: N818 - it ends a forward pass early, which is no error
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


@torch.no_grad()
def capture(blocks: Sequence[nn.Module], run: Callable[[], object]) -> tuple[FrozenBlocks, Tensor]:
    """What the last of the blocks gives, [B, T, D], when `run` calls the model; nothing after it is computed."""

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        raise _Reached(output)

    handle = blocks[-1].register_forward_hook(stop)
    try:
        run()
    except _Reached as reached:
        output = reached.output
    else:
        raise AssertionError("the model ran to its end without its frozen blocks")
    finally:
        handle.remove()
    if isinstance(output, tuple):
        return FrozenBlocks(tuple(blocks), len(output)), output[0]
    return FrozenBlocks(tuple(blocks)), output


@contextmanager
def replaying(frozen: FrozenBlocks, states_BTD: Tensor) -> Iterator[None]:
    """Within it a forward pass takes `states_BTD` for what the frozen blocks would give."""
    *below, last = frozen.blocks

    def pass_on(*args: Any, **kwargs: Any) -> Any:
        return frozen.output(args[0] if args else kwargs["hidden_states"])

    def give(*args: Any, **kwargs: Any) -> Any:
        return frozen.output(states_BTD)

    before = [vars(block).get("forward") for block in frozen.blocks]  # a wrapper may have put its own there
    try:
        for block in below:
            block.forward = pass_on
        last.forward = give
        yield
    finally:
        for block, forward in zip(frozen.blocks, before, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward


class KeptStates:
    """The states of many rows one after the other, [N, D], in memory or in a mapped file without a name.

    The file's room is taken before anything is written, and its name is removed at once, so that nothing is left
    behind even by a process that is killed.
    """

    def __init__(self, lengths: Sequence[int], width: int, dtype: torch.dtype, file: Path | None = None) -> None:
        self.lengths = torch.tensor(lengths)
        self.starts = self.lengths.cumsum(0) - self.lengths
        num_positions = int(self.lengths.sum())
        if file is None:
            self.states_ND = torch.empty(num_positions, width, dtype=dtype)
        else:
            self.states_ND = _mapped(file, num_positions * width, dtype).view(num_positions, width)

    def put(self, row: int, states_TD: Tensor) -> None:
        """Keep a row's states."""
        start = int(self.starts[row])
        self.states_ND[start : start + int(self.lengths[row])].copy_(states_TD)

    def padded(self, rows: Sequence[int]) -> Tensor:
        """The states of some rows, [B, T, D]; a shorter row is filled up with copies of its last state."""
        chosen = torch.tensor(rows)
        lengths_B1 = self.lengths[chosen][:, None]
        places_BT = torch.minimum(torch.arange(int(lengths_B1.max()))[None], lengths_B1 - 1)
        return self.states_ND[self.starts[chosen][:, None] + places_BT]

    def packed(self, rows: Sequence[int]) -> Tensor:
        """The states of some rows in one, [1, T, D]."""
        ends = (self.starts + self.lengths).tolist()
        starts = self.starts.tolist()
        return torch.cat([self.states_ND[starts[row] : ends[row]] for row in rows])[None]


def _mapped(file: Path, size: int, dtype: torch.dtype) -> Tensor:
    """A tensor [size] over a new file whose name is gone.

    Raises:
        OSError: The disk has no room for it.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size * dtype.itemsize)
        return torch.from_file(str(file), shared=True, size=size, dtype=dtype)
    finally:
        os.close(descriptor)
        file.unlink()

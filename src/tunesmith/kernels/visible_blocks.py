"""The blocks of keys that blocks of queries see in a packed row, for flex attention.

`torch.nn.attention.flex_attention.create_block_mask` compares each query with each key, which is the row's square.
Here they are read off the examples' borders on the processor, so that nothing is computed on the GPU or waited for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from tunesmith.kernels.example_groups import Span

SIZE = 128
"""Queries and keys of a block; flex attention's own default."""
_Ints = NDArray[np.int64]


def visible_blocks(spans: Sequence[Span], left: int, right: int, device: torch.device | str) -> BlockMask:
    """What is seen in one packed row whose examples follow each other without gaps.

    `left` and `right` are the places before and after its own that a query sees, -1 for all of its example.
    """
    lengths = np.array([end - first for _, first, end, _, _ in spans])
    num_tokens = int(lengths.sum())
    ends = np.repeat(lengths.cumsum(), lengths)
    starts = ends - np.repeat(lengths, lengths)
    places = np.arange(num_tokens)
    low = starts if left < 0 else np.maximum(starts, places - left)
    high = ends if right < 0 else np.minimum(ends, places + right + 1)
    firsts = places[::SIZE]
    lasts = np.minimum(firsts + SIZE, num_tokens) - 1
    seen = _between(low[firsts] // SIZE, (high[lasts] - 1) // SIZE + 1)
    whole = _between(-(-low[lasts] // SIZE), high[firsts] // SIZE)
    whole &= (lasts - firsts == SIZE - 1)[:, None]
    number_T = _moved(np.repeat(np.arange(len(lengths)), lengths), device)

    def is_seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = number_T[query] == number_T[key]
        if left >= 0:
            seen = seen & (query - key <= left)
        if right >= 0:
            seen = seen & (key - query <= right)
        return seen

    return BlockMask.from_kv_blocks(
        *_counted(seen & ~whole, device),
        *_counted(whole, device),
        BLOCK_SIZE=SIZE,
        mask_mod=is_seen,
        seq_lengths=(num_tokens, num_tokens),
    )


def _between(first: _Ints, end: _Ints) -> NDArray[np.bool_]:
    """Of each block of queries the blocks of keys from the first to the end: [blocks, blocks]."""
    numbers = np.arange(len(first))
    is_between: NDArray[np.bool_] = (numbers >= first[:, None]) & (numbers < end[:, None])
    return is_between


def _counted(is_in: NDArray[np.bool_], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has [1, 1, blocks], and which [1, 1, blocks, blocks]."""
    order = np.argsort(~is_in, axis=1, kind="stable")
    return _moved(is_in.sum(1)[None, None], device), _moved(order[None, None], device)


def _moved(numbers: _Ints, device: torch.device | str) -> Tensor:
    """Whole numbers on the device; to a GPU without waiting."""
    tensor = torch.from_numpy(numbers.astype(np.int32))
    is_cuda = torch.device(device).type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if is_cuda else tensor.to(device)

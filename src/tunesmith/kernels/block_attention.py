"""Causal attention on a processor, forward and backward, block by block over the lower triangle.

For each block of queries there are three plain products with the keys it may see, so the matrix unit does the work and
nothing above the diagonal (or left of a sliding window) is computed. PyTorch's own CPU kernel takes 2 to 5 times as
long for forward and backward together (docs/log.md). The queries that share a key head go through each
product together, so grouped queries cost no copies of keys.
Legend: H query heads, K key/value heads, G = H / K, T tokens, D head width, Q queries of a block, S keys it sees.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Queries at once: few enough to skip most of the upper triangle, enough to fill the matrix unit."""
LONGEST_KEPT = 1024
"""Tokens; of longer examples the probabilities are computed again in the backward pass instead of kept."""


def block_attention(
    query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float, window: int | None = None
) -> Tensor:
    """softmax(scale Q K^T) V of one example, each query seeing itself and what lies before: [H, T, D].

    A query sees the last `window` keys at most. Products and scores have the inputs' dtype (autocast's where it is
    on), softmax sums in fp32.
    """
    if torch.is_autocast_enabled("cpu"):  # fp32 rotary positions give fp32 queries beside bf16 values
        dtype = torch.get_autocast_dtype("cpu")
        query_HTD, key_KTD, value_KTD = query_HTD.to(dtype), key_KTD.to(dtype), value_KTD.to(dtype)
    heads, length, width = query_HTD.shape
    grouped_KGTD = query_HTD.reshape(key_KTD.shape[0], -1, length, width)
    output: Tensor = _BlockAttention.apply(grouped_KGTD, key_KTD, value_KTD, scale, window)  # type: ignore[no-untyped-call]
    return output.view(heads, length, width)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        length = query.shape[2]
        output = torch.empty_like(query)
        kept = []
        for first, last, low in _blocks(length, window):
            probabilities = _probabilities(query, key, scale, window, (first, last, low))
            output[:, :, first:last] = (probabilities @ value[:, low:last]).view_as(output[:, :, first:last])
            if length <= LONGEST_KEPT:
                kept.append(probabilities)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale, ctx.window = scale, window
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *kept = ctx.saved_tensors
        (upstream,) = grad_outputs
        exact = torch.promote_types(key.dtype, torch.float32)  # blocks add up in fp32 at least
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key, dtype=exact), torch.zeros_like(value, dtype=exact)
        for number, (first, last, low) in enumerate(_blocks(query.shape[2], ctx.window)):
            block = (first, last, low)
            rows = _rows(query, first, last)
            probabilities = kept[number] if kept else _probabilities(query, key, ctx.scale, ctx.window, block)
            above = _rows(upstream, first, last)
            grad_value[:, low:last] += probabilities.transpose(-1, -2) @ above
            grad_probabilities = above @ value[:, low:last].transpose(-1, -2)
            grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, query.dtype)
            grad_query[:, :, first:last] = (grad_scores @ key[:, low:last]).view_as(grad_query[:, :, first:last])
            grad_key[:, low:last] += grad_scores.transpose(-1, -2) @ rows
        return (
            grad_query.mul_(ctx.scale),
            grad_key.mul_(ctx.scale).to(key.dtype),
            grad_value.to(value.dtype),
            None,
            None,
        )


def _blocks(length: int, window: int | None) -> list[tuple[int, int, int]]:
    """First query, last query (exclusive) and first key of each block."""
    bounds = [(first, min(first + BLOCK, length)) for first in range(0, length, BLOCK)]
    return [(first, last, 0 if window is None else max(0, first - window + 1)) for first, last in bounds]


def _rows(states_KGTD: Tensor, first: int, last: int) -> Tensor:
    """The queries of a block with their group's in one row of products: [K, G x Q, D]."""
    return states_KGTD[:, :, first:last].flatten(1, 2)


def _probabilities(query: Tensor, key: Tensor, scale: float, window: int | None, block: tuple[int, int, int]) -> Tensor:
    """What each query of a block gives each key it sees: [K, G x Q, S]."""
    first, last, low = block
    scores = (_rows(query, first, last) * scale) @ key[:, low:last].transpose(-1, -2)
    by_query = scores.view(-1, last - first, last - low)
    by_query[..., first - low :].add_(_later(query.dtype)[: last - first, : last - first])
    if window is not None and first + BLOCK > window:
        by_query.add_(_out_of_window(block, window, query.dtype))
    return scores.softmax(-1)


@cache
def _later(dtype: torch.dtype) -> Tensor:
    """-inf where a key of the block itself comes after the query, 0 elsewhere."""
    return torch.full((BLOCK, BLOCK), float("-inf"), dtype=dtype).triu(1)


def _out_of_window(block: tuple[int, int, int], window: int, dtype: torch.dtype) -> Tensor:
    """-inf where a key lies `window` or more before the query, 0 elsewhere: [Q, S]."""
    first, last, low = block
    distance = torch.arange(first, last)[:, None] - torch.arange(low, last)[None, :]
    return torch.zeros(distance.shape, dtype=dtype).masked_fill_(distance >= window, float("-inf"))

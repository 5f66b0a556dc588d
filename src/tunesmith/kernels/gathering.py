"""Where the states of examples lie while they go through attention: group by group, each head's tokens together.

Gathered and put back by one operation each, with numbers that are made once for all layers of a pass; example by
example it were some hundred small copies in every layer of a pack of eight (docs/log.md).
Legend: B rows, T tokens, H heads, D head width, n examples of a group, L its longest, P places: the sum of n H L.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.kernels.example_groups import Place, Span, groups, keys, queries, sizes

_KEPT = 4
"""Arrangements that are remembered, of 8 bytes a state: local and global layers of a pass have one each."""


@dataclass(frozen=True, eq=False)
class Gathering:
    """The places of one kind of states, queries or keys."""

    sources_P: Tensor
    """For each place, the number of the state that lies there, b T H + t H + h; padding has its example's first."""
    padding: Tensor
    """The places that are padding."""
    places: Tensor
    """For each state, in that order, its place; 0 of those in no example."""
    outside: Tensor
    """The states in no example."""
    chunks: tuple[slice, ...]
    """The places of each group."""
    shapes: tuple[tuple[int, int, int], ...]
    """n, H and L of each group."""
    own_shape: tuple[int, int, int]
    """B, T and H of the states in their own order."""

    def gather(self, states_BHTD: Tensor) -> Tensor:
        """The states at their places, [P, D]."""
        return states_BHTD.transpose(1, 2).reshape(-1, states_BHTD.shape[3]).index_select(0, self.sources_P)

    def group(self, number: int, states_PD: Tensor) -> Tensor:
        """A view of one group's, [n, H, L, D]."""
        return states_PD[self.chunks[number]].view(*self.shapes[number], states_PD.shape[1])

    def put_back(self, states_PD: Tensor) -> Tensor:
        """The states in their own order, [B, T, H, D]; zero where no example is."""
        states = states_PD.index_select(0, self.places)
        if self.outside.numel():
            states.index_fill_(0, self.outside, 0.0)
        return states.view(*self.own_shape, states_PD.shape[1])


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The groups of a batch's examples, and where their states lie."""

    groups: tuple[tuple[Span, ...], ...]
    queries: Gathering
    keys: Gathering


def arranged(query_BHTD: Tensor, key_BKTD: Tensor, spans_N5: Tensor) -> Arrangement | None:
    """The arrangement of such states; None where there is no example."""
    spans = spans_N5.contiguous().numpy().tobytes()
    return _arranged(spans, tuple(query_BHTD.shape[:3]), tuple(key_BKTD.shape[:3]))


def room_like(states_BHTD: Tensor) -> Tensor:
    """Room for a gradient whose heads lie side by side at each token, as the projections want it."""
    batch, heads, length, width = states_BHTD.shape
    return states_BHTD.new_empty(batch, length, heads, width).transpose(1, 2)


@lru_cache(_KEPT)
def _arranged(spans: bytes, query: tuple[int, int, int], key: tuple[int, int, int]) -> Arrangement | None:
    rows: Any = np.frombuffer(spans, np.int64).reshape(-1, 5).tolist()
    found = groups(rows)
    if not found:
        return None
    lengths = [sizes(group) for group in found]
    of_queries = _gathering([queries(group) for group in found], [one[0] for one in lengths], *query)
    of_keys = of_queries
    if query != key or any(span[1:3] != span[3:5] for group in found for span in group):
        of_keys = _gathering([keys(group) for group in found], [one[1] for one in lengths], *key)
    return Arrangement(tuple(tuple(group) for group in found), of_queries, of_keys)


def _gathering(
    groups: Sequence[Sequence[Place]], longest: Sequence[int], batch: int, heads: int, length: int
) -> Gathering:
    sources, is_padding, chunks, shapes, taken = [], [], [], [], 0
    for places, most in zip(groups, longest, strict=True):
        rows, firsts, ends = np.array(places).T[:, :, None]
        tokens_nL = firsts + np.arange(most)
        is_after_nL = tokens_nL >= ends
        tokens_nL = rows * length + np.where(is_after_nL, firsts, tokens_nL)
        sources_nHL = tokens_nL[:, None] * heads + np.arange(heads)[:, None]
        sources.append(sources_nHL.ravel())
        is_padding.append(np.broadcast_to(is_after_nL[:, None], sources_nHL.shape).ravel())
        chunks.append(slice(taken, taken := taken + sources_nHL.size))
        shapes.append(sources_nHL.shape)
    of_place, is_empty = np.concatenate(sources), np.concatenate(is_padding)
    places_of = np.full(batch * length * heads, -1)
    filled = np.flatnonzero(~is_empty)
    places_of[of_place[filled]] = filled
    outside = np.flatnonzero(places_of < 0)
    places_of[outside] = 0
    return Gathering(
        torch.from_numpy(of_place.astype(np.int32)),
        torch.from_numpy(np.flatnonzero(is_empty)),
        torch.from_numpy(places_of.astype(np.int32)),
        torch.from_numpy(outside),
        tuple(chunks),
        tuple(shapes),
        (batch, length, heads),
    )

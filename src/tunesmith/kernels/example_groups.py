"""Examples in groups that go through the products of attention together, and their queries in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BLOCK = 128
"""Queries at once, about: few enough to skip most of the upper triangle, enough to fill the matrix unit."""
WHOLE_BLOCK = 384
"""The same where queries see all keys, so that there is nothing to skip."""
GROUP = 2**16
"""Scores per head of short examples that go through the products together; of one example more."""
LIKE = 0.8
"""The shortest example of a group against its longest."""
LONGEST_KEPT = 1024
"""Keys; of longer examples the probabilities are computed again in the backward pass instead of kept."""
STEP = 32
"""Queries of a block are a multiple of this where there are several: odd sizes slow the products."""
UNLIMITED = -1
"""A reach without an end, as in flash-attention's `window_size`."""
Block = tuple[int, int, int, int]
"""First query, end of the queries, first key and end of the keys that these queries see together."""
Span = tuple[int, int, int, int, int]
"""An example's row of the batch, first query, end of its queries, first key and end of its keys."""
Place = tuple[int, int, int]
"""A row of the batch, the first token there and the end of the tokens."""


@dataclass(frozen=True)
class Attend:
    """What a query makes of the keys of its example.

    Attributes:
        scale: What products of queries and keys are multiplied by.
        left: Keys before its own place that a query sees; -1 for all.
        right: Keys after its own place that it sees; 0 for causal attention, -1 for all.
        softcap: Gemma 2's cap c (arXiv:2408.00118, section 2): scores become c tanh(score / c); 0 for none.
        dropout: The share of probabilities that is set to zero; the others grow by 1 / (1 - share).
    """

    scale: float
    left: int = UNLIMITED
    right: int = 0
    softcap: float = 0.0
    dropout: float = 0.0


def kept(spans: Sequence[Span], left: int = UNLIMITED, right: int = 0) -> int:
    """The probabilities per query head that are kept for the backward pass of such examples."""
    attend = Attend(1.0, left, right)
    return sum(
        len(group) * (last - first) * (high - low)
        for group in groups(spans)
        if (size := sizes(group))[1] <= LONGEST_KEPT
        for first, last, low, high in blocks(*size, attend)
    )


def groups(spans: Sequence[Span]) -> list[list[Span]]:
    """Examples in groups of like length, short ones together: many small products cost more than one."""
    made: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span[3] - span[4], span[1] - span[2])):
        num_queries, num_keys = sizes([span])
        if not num_queries or not num_keys:
            continue
        most_queries, most_keys = sizes(made[-1][:1]) if made else (0, 0)
        is_like = LIKE * most_keys <= num_keys and LIKE * most_queries <= num_queries <= most_queries
        if is_like and (len(made[-1]) + 1) * most_queries * most_keys <= GROUP:
            made[-1].append(span)
        else:
            made.append([span])
    return made


def sizes(spans: Sequence[Span]) -> tuple[int, int]:
    """The most queries and the most keys of an example."""
    return max(span[2] - span[1] for span in spans), max(span[4] - span[3] for span in spans)


def queries(spans: Sequence[Span]) -> list[Place]:
    """Row, first query and end of the queries of each example."""
    return [(row, first, end) for row, first, end, _, _ in spans]


def keys(spans: Sequence[Span]) -> list[Place]:
    """Row, first key and end of the keys of each example."""
    return [(row, first, end) for row, _, _, first, end in spans]


def blocks(num_queries: int, num_keys: int, attend: Attend) -> list[Block]:
    """Blocks of queries of nearly one size, with the keys that they see."""
    left, right = attend.left, attend.right
    about = BLOCK if left >= 0 or right >= 0 else WHOLE_BLOCK
    size = -(-num_queries // max(1, round(num_queries / about)))
    size += -size % STEP if size < num_queries else 0
    bounds = [(first, min(first + size, num_queries)) for first in range(0, num_queries, size)]
    return [
        (first, last, max(0, first - left) if left >= 0 else 0, min(num_keys, last + right) if right >= 0 else num_keys)
        for first, last in bounds
    ]

"""Put rows together so that little is padding: into one long row, or beside rows of about the same length.

Both are pure functions of the lengths: the same lengths give the same groups.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heapify, heapreplace

MAX_PADDING = 0.1


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in bins of at most `budget` tokens: best-fit decreasing, within 22 % of the fewest bins, then levelled.

    The largest bin decides how much memory a step takes, so the same number of bins is filled evenly where that makes
    the largest smaller. Each index comes once; a row longer than the budget is alone in its bin. Bins, and rows within
    them, are in order of their first row.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    for i in _longest_first(lengths):
        place = bisect_left(free, (lengths[i], -1))
        if place < len(free):
            room, number = free.pop(place)
            bins[number].append(i)
        else:
            room, number = max(budget, lengths[i]), len(bins)
            bins.append([i])
        if room > lengths[i]:
            insort(free, (room - lengths[i], number))
    return _in_order(min(bins, _level(lengths, len(bins)), key=lambda one: _largest(one, lengths)))


def bucket(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in groups whose padded size (rows x longest) is at most `budget`, at most 10 % of it padding.

    Each index comes once; a row longer than the budget is alone. Groups, and rows within them, are in order of their
    first row.
    """
    groups: list[list[int]] = []
    longest = total = 0
    for i in _longest_first(lengths):
        size = longest * (len(groups[-1]) + 1) if groups else 0
        if groups and size <= budget and total + lengths[i] >= (1 - MAX_PADDING) * size:
            groups[-1].append(i)
            total += lengths[i]
        else:
            groups.append([i])
            longest = total = lengths[i]
    return _in_order(groups)


def _level(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Each row, longest first, into the bin that holds least so far (Graham 1969)."""
    bins: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, number) for number in range(count)]
    heapify(filled)
    for i in _longest_first(lengths):
        total, number = filled[0]
        bins[number].append(i)
        heapreplace(filled, (total + lengths[i], number))
    return bins


def _largest(bins: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    return max((sum(lengths[i] for i in one) for one in bins), default=0)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def _in_order(groups: list[list[int]]) -> list[list[int]]:
    return sorted(sorted(group) for group in groups)

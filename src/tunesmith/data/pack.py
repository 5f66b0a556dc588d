"""Put rows together so that little is padding: into one long row, or beside rows of about the same length.

Both are pure functions of the lengths: the same lengths give the same groups.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

MAX_PADDING = 0.1


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in bins of at most `budget` tokens: best-fit decreasing, within 22 % of the fewest bins.

    Each index comes once; a row longer than the budget is alone in its bin. Bins, and rows within them, are in order
    of their first row.
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
    return _in_order(bins)


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


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def _in_order(groups: list[list[int]]) -> list[list[int]]:
    return sorted(sorted(group) for group in groups)

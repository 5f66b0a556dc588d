"""How well the order of the given numbers is the order of the references, from -1 to 1."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from tunesmith.core.confusion import correlation, moments, ranks
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric, numbers


class Spearman(Metric):
    """Pearson's correlation of ranks; rows of equal number share their mean rank.

    A rank is a place among all the rows, so the value is exact for them; resampled rows and parts keep the ranks they
    have in the whole. Where two sets of answers to the same rows come together, each is ranked by itself.
    """

    needs: ClassVar[Literal["numbers"]] = "numbers"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    is_ranked: ClassVar[bool] = True

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        given_R, actual_R = numbers(outcomes, self.name)
        ranked = np.zeros((2, len(outcomes)))
        for rows in _sets(outcomes):
            ranked[0, rows], ranked[1, rows] = ranks(given_R[rows]), ranks(actual_R[rows])
        return moments(ranked[0], ranked[1])

    def value(self, sums: Array) -> Array:
        return correlation(sums)


def _sets(outcomes: Sequence[Outcome]) -> list[list[int]]:
    """Places of the first answers to every row, of the second answers, and so on."""
    seen: dict[str, int] = defaultdict(int)
    sets: dict[int, list[int]] = defaultdict(list)
    for place, outcome in enumerate(outcomes):
        sets[seen[outcome.origin]].append(place)
        seen[outcome.origin] += 1
    return list(sets.values())

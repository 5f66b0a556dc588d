"""How well the given numbers follow the references along a straight line, from -1 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from tunesmith.core.confusion import correlation, moments
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric, numbers


class Pearson(Metric):
    """Pearson's correlation, from the rows' sums of x, y, x², y² and xy; 0 where one side does not vary."""

    needs: ClassVar[Literal["numbers"]] = "numbers"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        return moments(*numbers(outcomes, self.name))

    def value(self, sums: Array) -> Array:
        return correlation(sums)

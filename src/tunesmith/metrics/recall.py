"""Of the rows that belong to a class, the share that were given it; averaged over classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from tunesmith.core.confusion import Average, averaged, class_counts, class_names, per_class, ratio
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric


class Recall(Metric):
    """As scikit-learn's, over the classes that occur, with 0 where the denominator is 0."""

    needs: ClassVar[Literal["answers", "likelihood", "labels"]] = "labels"

    average: Average = "macro"
    """`macro`: every class counts the same; `weighted`: by its number of rows; `micro`: over all rows together."""

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        return class_counts(outcomes, class_names(outcomes))

    def value(self, sums: Array) -> Array:
        return averaged(sums, _recall, self.average)

    def details(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        sums = self.statistics(outcomes).sum(axis=0)
        return {"per_class": per_class(sums, _recall, class_names(outcomes))}


def _recall(right: Array, given: Array, actual: Array) -> Array:
    return ratio(right, actual)

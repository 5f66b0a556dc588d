"""Share of rows whose class, or whole set of classes, is right, with the confusion matrix in its details."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from tunesmith.core.confusion import actual_classes, class_names, confusion, given_classes, ratio
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric, hits


class Accuracy(Metric):
    """Rows whose predicted class equals the reference, over all rows.

    Of rows with several classes the whole set must be right (subset accuracy, as scikit-learn's).
    """

    needs: ClassVar[Literal["answers", "likelihood", "labels"]] = "labels"
    is_rate: ClassVar[bool] = True

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        return hits([given_classes(outcome) == actual_classes(outcome) for outcome in outcomes])

    def value(self, sums: Array) -> Array:
        return ratio(sums[..., 0], sums[..., 1])

    def details(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        if any(outcome.reference_labels is not None for outcome in outcomes):
            return {}
        labels = class_names(outcomes)
        return {"labels": labels, "confusion": confusion(outcomes, labels).astype(int).tolist()}

"""Share of words that got the right tag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from tunesmith.core.confusion import ratio
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric


class TagAccuracy(Metric):
    """Words with the right tag, over all words of all rows. Where most words are `O` it flatters: see entity_f1."""

    needs: ClassVar[Literal["tags"]] = "tags"

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        rows = []
        for outcome in outcomes:
            actual = outcome.reference_labels or ()
            right = sum(a == b for a, b in zip(outcome.answer_labels or (), actual, strict=True))
            rows.append([right, len(actual)])
        return np.array(rows, dtype=np.float64).reshape(len(outcomes), 2)

    def value(self, sums: Array) -> Array:
        return ratio(sums[..., 0], sums[..., 1])

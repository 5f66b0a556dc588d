"""Seconds per answer, mean over rows; the median and the slowest twentieth in its details."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tunesmith.core.confusion import ratio
from tunesmith.core.errors import UserError
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric


class Latency(Metric):
    """Wall-clock seconds of each answer, as its predictor measured them. Lower is better.

    In a batched pass a row's seconds are its share of the batch; `seconds_per_answer` is measured one by one.
    """

    higher_is_better: ClassVar[bool] = False
    title: ClassVar[str] = "s/answer"
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        for outcome in outcomes:
            if outcome.seconds <= 0:
                raise UserError(
                    "the answer was not timed.",
                    code="no_clock",
                    where=outcome.origin,
                    remedy="Leave out `latency`, or generate the answers again.",
                )
        return np.array([[outcome.seconds, 1.0] for outcome in outcomes]).reshape(len(outcomes), 2)

    def value(self, sums: Array) -> Array:
        return ratio(sums[..., 0], sums[..., 1])

    def details(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        seconds = [outcome.seconds for outcome in outcomes]
        return {"median": float(np.median(seconds)), "p95": float(np.quantile(seconds, 0.95))}

"""The squared distance of the given numbers from the references, on average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from tunesmith.core.confusion import ratio
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric, numbers


class MeanSquaredError(Metric):
    """sum (given - reference)^2 / rows. Lower is better; what `regression` trains."""

    needs: ClassVar[Literal["numbers"]] = "numbers"
    higher_is_better: ClassVar[bool] = False
    title: ClassVar[str] = "MSE"
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        given_R, actual_R = numbers(outcomes, self.name)
        return np.stack([(given_R - actual_R) ** 2, np.ones(len(outcomes))], axis=-1)

    def value(self, sums: Array) -> Array:
        return ratio(sums[..., 0], sums[..., 1])

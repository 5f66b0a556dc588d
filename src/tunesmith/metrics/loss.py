"""Mean loss of the reference, in nats per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from tunesmith.core.confusion import ratio
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric, likelihoods


class Loss(Metric):
    """Negative log-likelihood of the reference's tokens, summed, over their number. Lower is better."""

    needs: ClassVar[Literal["answers", "likelihood", "labels"]] = "likelihood"
    higher_is_better: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        return likelihoods(outcomes, self.name)

    def value(self, sums: Array) -> Array:
        return ratio(sums[..., 0], sums[..., 1])

"""exp of the mean loss per token: between how many tokens the model hesitates.

It depends on the tokenizer, so models with different tokenizers cannot be compared by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from tunesmith.core.confusion import ratio
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric, likelihoods

MOST_NATS = 700.0
"""exp of more than 709 is infinite in float64."""


class Perplexity(Metric):
    """exp(nats per token of the reference). 1 is perfect; lower is better."""

    needs: ClassVar[Literal["answers", "likelihood", "labels"]] = "likelihood"
    higher_is_better: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (1.0, np.inf)

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        return likelihoods(outcomes, self.name)

    def value(self, sums: Array) -> Array:
        return np.exp(np.minimum(ratio(sums[..., 0], sums[..., 1]), MOST_NATS))

    def details(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        nats, tokens = self.statistics(outcomes).sum(axis=0)
        return {"nats_per_token": float(nats / tokens), "num_tokens": int(tokens)}

"""What a metric is: additive statistics of each row, and a function from their sums to the value.

So any set of rows can be scored, resampled and compared in pairs without looking at the answers again:
a bootstrap replicate is a row of counts times the matrix of statistics.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.plugins import Plugin
from tunesmith.core.records import Outcome

Array = NDArray[np.float64]


class Metric(Plugin):
    """A score over rows. Legend: R rows, S statistics of one row, any leading axes `...`."""

    needs: ClassVar[Literal["answers", "likelihood", "labels"]] = "answers"
    """What the predictor must give: generated answers, the reference's likelihood, or class labels."""
    higher_is_better: ClassVar[bool] = True
    title: ClassVar[str] = ""
    """The name in tables; the plug-in's own name where empty."""

    @abstractmethod
    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        """Additive statistics, [R, S]."""

    @abstractmethod
    def value(self, sums: Array) -> Array:
        """The metric from summed statistics: [..., S] to [...]."""

    def signature(self) -> str:
        """How exactly it was computed (sacreBLEU's signature, say); empty where the name says it all."""
        return ""

    def details(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """More than one number: per class, a confusion matrix. JSON values only."""
        return {}

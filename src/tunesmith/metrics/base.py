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

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import Plugin
from tunesmith.core.records import Outcome

Array = NDArray[np.float64]
Needs = Literal["answers", "likelihood", "labels", "tags", "numbers"]


class Metric(Plugin):
    """A score over rows. Legend: R rows, S statistics of one row, any leading axes `...`."""

    needs: ClassVar[Needs] = "answers"
    """What the predictor must give: generated answers, the reference's likelihood, classes, tags of words, numbers."""
    higher_is_better: ClassVar[bool] = True
    title: ClassVar[str] = ""
    """The name in tables; the plug-in's own name where empty."""
    is_rate: ClassVar[bool] = False
    """The value is the share of rows that hit: statistics [R, 2] are (0 or 1, 1)."""
    is_ranked: ClassVar[bool] = False
    """A row's statistics depend on the rows it is scored with; they add up only within one call."""
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """The least and the greatest value there can be."""

    def key(self) -> str:
        """The name scores are filed under, with the settings that were changed: `rouge:variant=rouge1`."""
        return self.name + "".join(f":{setting}={value}" for setting, value in self.changed().items())

    def heading(self) -> str:
        """The name in tables, with what makes it special."""
        changed = ", ".join(f"{value}" for value in self.changed().values())
        title = self.title or self.name.replace("_", " ")
        return f"{title} ({changed})" if changed else title

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


def hits(are_hit: Sequence[bool]) -> Array:
    """Statistics of a rate: (1 where the row hits, 1), [R, 2]."""
    return np.array([[float(is_hit), 1.0] for is_hit in are_hit]).reshape(len(are_hit), 2)


def numbers(outcomes: Sequence[Outcome], metric: str) -> tuple[Array, Array]:
    """The given numbers and the references, [R] each.

    Raises:
        UserError: A row's answer or reference is no finite number.
    """
    columns = []
    for text in ("answer", "reference"):
        column = np.zeros(len(outcomes))
        for row, outcome in enumerate(outcomes):
            try:
                column[row] = float(getattr(outcome, text))
            except ValueError:
                column[row] = np.nan
            if not np.isfinite(column[row]):
                raise UserError(
                    f"the {text} {getattr(outcome, text)[:40]!r} is no number, so {metric} cannot be computed.",
                    code="not_a_number",
                    where=outcome.origin,
                    remedy="Score rows with numbers; if the model gives none, train it again with a lower `train.lr`.",
                )
        columns.append(column)
    return columns[0], columns[1]


def likelihoods(outcomes: Sequence[Outcome], metric: str) -> Array:
    """(nats, tokens) of each row's reference, [R, 2].

    Raises:
        UserError: A row has no likelihood, no scored token, or one that is not a number.
    """
    for outcome in outcomes:
        if outcome.nll_nats is None or outcome.num_scored_tokens < 1:
            raise UserError(
                f"the reference has no likelihood, so {metric} cannot be computed.",
                code="no_likelihood",
                where=outcome.origin,
                remedy="The row needs an answer of at least one token, and a model that gives likelihoods.",
            )
        if not np.isfinite(outcome.nll_nats):
            raise UserError(
                f"the model gives the reference a loss of {outcome.nll_nats}.",
                code="not_a_number",
                where=outcome.origin,
                remedy="The model has diverged: train it again with a lower `train.lr`.",
            )
    return np.array([[outcome.nll_nats, outcome.num_scored_tokens] for outcome in outcomes], dtype=np.float64)

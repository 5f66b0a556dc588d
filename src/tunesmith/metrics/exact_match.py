"""Share of answers that equal the reference, but for case, punctuation and spacing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from tunesmith.core.confusion import ratio
from tunesmith.core.records import Outcome
from tunesmith.core.words import words
from tunesmith.metrics.base import Array, Metric, hits


class ExactMatch(Metric):
    """Answers equal to their reference after normalising, over all rows.

    `words` is stricter than SQuAD's rule: articles count, and numbers keep sign and decimal point.
    """

    is_rate: ClassVar[bool] = True

    normalise: Literal["words", "spaces", "none"] = "words"
    """`words`: without case, punctuation and spacing; `spaces`: only spacing is evened; `none`: every character."""
    marker: str = ""
    """Compare only what follows the last such mark in the reference and in the answer: `####` for GSM8K."""

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        return hits([self._key(outcome.answer) == self._key(outcome.reference) for outcome in outcomes])

    def value(self, sums: Array) -> Array:
        return ratio(sums[..., 0], sums[..., 1])

    def signature(self) -> str:
        return f"normalise:{self.normalise}" + (f"|marker:{self.marker}" if self.marker else "")

    def _key(self, text: str) -> object:
        if self.marker and self.marker in text:
            text = text.rpartition(self.marker)[2]
        if self.normalise == "words":
            return words(text)
        return " ".join(text.split()) if self.normalise == "spaces" else text

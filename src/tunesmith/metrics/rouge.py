"""ROUGE F-measure: overlap of words with the reference, by Google's rouge-score; mean over rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from tunesmith.core.confusion import ratio
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric


class Rouge(Metric):
    """Mean over rows of the F-measure; precision and recall are in the details."""

    title: ClassVar[str] = "ROUGE"

    variant: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL"
    """Single words, pairs of words, the longest common subsequence, or that by lines (rougeLsum)."""
    use_stemmer: bool = False
    """Count English words with the same stem as equal."""

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([self.variant], use_stemmer=self.use_stemmer)
        rows = []
        for outcome in outcomes:
            score = scorer.score(outcome.reference, outcome.answer)[self.variant]
            rows.append([score.fmeasure, score.precision, score.recall, 1.0])
        return np.asarray(rows, dtype=np.float64).reshape(len(outcomes), 4)

    def value(self, sums: Array) -> Array:
        return ratio(sums[..., 0], sums[..., 3])

    def heading(self) -> str:
        return self.variant.replace("rouge", "ROUGE-") + (", stemmed" if self.use_stemmer else "")

    def signature(self) -> str:
        from importlib.metadata import version

        return f"{self.variant}|stemmer:{'yes' if self.use_stemmer else 'no'}|rouge-score:{version('rouge-score')}"

    def details(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        _, precision, recall, count = self.statistics(outcomes).sum(axis=0)
        return {"precision": float(precision / count), "recall": float(recall / count)}

"""Corpus BLEU from 0 to 100, by sacreBLEU, with its signature.

The value equals `sacrebleu.corpus_bleu`; n-gram counts of each row are its additive statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric

ORDERS = 4


class Bleu(Metric):
    """Geometric mean of 1- to 4-gram precisions with a penalty for answers that are too short."""

    title: ClassVar[str] = "BLEU"
    bounds: ClassVar[tuple[float, float]] = (0.0, 100.0)

    tokenize: Literal["13a", "intl", "char", "none"] = "13a"
    """How sacreBLEU cuts words; 13a is what papers report."""
    lowercase: bool = False
    """Ignore case."""

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        bleu = self._sacrebleu(effective_order=True)
        rows = []
        for outcome in outcomes:
            score = bleu.sentence_score(outcome.answer, [outcome.reference])
            rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
        return np.asarray(rows, dtype=np.float64).reshape(len(outcomes), 2 + 2 * ORDERS)

    def value(self, sums: Array) -> Array:
        flat = np.rint(sums).astype(int).reshape(-1, sums.shape[-1])
        distinct, places = np.unique(flat, axis=0, return_inverse=True)  # many draws of few rows are the same
        scores = np.array([self._from_counts(row.tolist()) for row in distinct])
        return scores[places.reshape(-1)].reshape(sums.shape[:-1])

    def signature(self) -> str:
        bleu = self._sacrebleu()
        bleu.corpus_score(["a"], [["a"]])  # the number of references becomes known
        return str(bleu.get_signature())

    def _from_counts(self, row: list[int]) -> float:
        return float(
            self._sacrebleu_class()
            .compute_bleu(correct=row[2 : 2 + ORDERS], total=row[2 + ORDERS :], sys_len=row[0], ref_len=row[1])
            .score
        )

    def _sacrebleu(self, **settings: Any) -> Any:
        return self._sacrebleu_class()(tokenize=self.tokenize, lowercase=self.lowercase, **settings)

    def _sacrebleu_class(self) -> Any:
        from sacrebleu.metrics.bleu import BLEU

        return BLEU

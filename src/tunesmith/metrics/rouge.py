"""ROUGE F-measure: overlap of words with the reference, with the numbers of Google's rouge-score; mean over rows.

Words and sequences that rouge-score counts in tables are counted here by sets of bits, some 50 times as fast; its own
scorer, which takes two seconds to import, is asked for stems and for `rougeLsum` only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from tunesmith.core.confusion import ratio
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric

Parts = tuple[float, float, float]
"""F-measure, precision and recall of one answer."""


class Rouge(Metric):
    """Mean over rows of the F-measure; precision and recall are in the details."""

    title: ClassVar[str] = "ROUGE"

    variant: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL"
    """Single words, pairs of words, the longest common subsequence, or that by lines (rougeLsum)."""
    use_stemmer: bool = False
    """Count English words with the same stem as equal."""

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        score = self._by_lines() if self.variant == "rougeLsum" else self._by_words()
        rows = [(*score(outcome.reference, outcome.answer), 1.0) for outcome in outcomes]
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

    def _by_words(self) -> Callable[[str, str], Parts]:
        words = _stems() if self.use_stemmer else _words
        length = {"rouge1": 1, "rouge2": 2}.get(self.variant)

        def score(reference: str, answer: str) -> Parts:
            wanted, given = words(reference), words(answer)
            if length is None:
                return _parts(longest_common(wanted, given), len(wanted), len(given))
            wanted_grams, given_grams = _grams(wanted, length), _grams(given, length)
            return _parts((wanted_grams & given_grams).total(), wanted_grams.total(), given_grams.total())

        return score

    def _by_lines(self) -> Callable[[str, str], Parts]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeLsum"], use_stemmer=self.use_stemmer)

        def score(reference: str, answer: str) -> Parts:
            found = scorer.score(reference, answer)["rougeLsum"]
            return found.fmeasure, found.precision, found.recall

        return score


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence of two sequences of words.

    A bit of `row` for each word of `first` is 0 where the table of lengths grows by one: a row of the table is one
    addition and two operations on bits (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004, fig. 2).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


def _words(text: str) -> list[str]:
    from rouge_score.tokenize import tokenize

    words: list[str] = tokenize(text, None)
    return words


def _stems() -> Callable[[str], list[str]]:
    from rouge_score.tokenizers import DefaultTokenizer

    stems: Callable[[str], list[str]] = DefaultTokenizer(use_stemmer=True).tokenize
    return stems


def _grams(words: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(length)), strict=False))


def _parts(num_common: int, num_wanted: int, num_given: int) -> Parts:
    precision, recall = num_common / max(num_given, 1), num_common / max(num_wanted, 1)
    both = precision + recall
    return (2 * precision * recall / both if both > 0 else 0.0), precision, recall

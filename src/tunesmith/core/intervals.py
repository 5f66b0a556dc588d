"""Intervals of scores and of paired differences, from additive statistics; answers are never looked at again.

Rates (hits of rows) get closed forms: Wilson's interval, and Newcombe's for the difference of two rates on the
same rows. A bootstrap of 0 hits in 96 rows says [0, 0], which is false; these say [0, 0.04] and stay honest for
few rows. Everything else is bootstrapped with BCa (Efron 1987): it corrects the percentile interval for bias and
skew, which corpus BLEU, macro F1 and perplexity have, and the jackknife it needs is free with additive statistics.
Where every replicate is equal and the value lies at an end of the metric's range, Wilson's interval for 0 (or all)
of the rows is used on that range.
Legend: R rows, S statistics, B replicates, N pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import NormalDist
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import UserError
from tunesmith.core.records import Outcome, Score

Array = NDArray[np.float64]

REPLICATES = 5000
"""Ends of an interval then vary by about 2 % of its width between seeds."""
CONFIDENCE = 0.95
CELLS_AT_ONCE = 4_000_000
"""Counts held in memory at a time (32 MB)."""


class Measure(Protocol):
    """What intervals need of a metric; `metrics/base.py` documents it."""

    higher_is_better: ClassVar[bool]
    is_rate: ClassVar[bool]
    bounds: ClassVar[tuple[float, float]]

    @property
    def name(self) -> str: ...
    def key(self) -> str: ...
    def statistics(self, outcomes: Sequence[Outcome]) -> Array: ...
    def value(self, sums: Array) -> Array: ...
    def signature(self) -> str: ...
    def details(self, outcomes: Sequence[Outcome]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Difference:
    """A metric's value on `a` minus its value on `b`, over the same rows, with its interval."""

    metric: str
    value: float
    low: float
    high: float
    num_rows: int
    higher_is_better: bool = True
    confidence: float = CONFIDENCE

    @property
    def is_separated(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0

    @property
    def is_better(self) -> bool:
        """Whether `a` is better than `b` beyond chance."""
        return self.is_separated and (self.value > 0) == self.higher_is_better

    @property
    def is_worse(self) -> bool:
        """Whether `a` is worse than `b` beyond chance."""
        return self.is_separated and not self.is_better

    def to_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n": self.num_rows,
            "higher_is_better": self.higher_is_better,
            "confidence": self.confidence,
        }


def score(metric: Measure, outcomes: Sequence[Outcome], seed: int) -> Score:
    """The metric over all rows with its 95 % interval.

    Raises:
        UserError: There are no rows, or a row lacks what the metric needs.
    """
    _refuse_empty(metric, outcomes)
    statistics_RS = metric.statistics(outcomes)
    value = float(metric.value(statistics_RS.sum(axis=0)))
    if metric.is_rate:
        low, high = wilson(float(statistics_RS[:, 0].sum()), len(outcomes))
        kind = "wilson"
    else:
        low, high, kind = _resampled(metric, statistics_RS, value, seed)
    return Score(
        metric=metric.key(),
        value=value,
        low=min(low, value),
        high=max(high, value),
        num_rows=len(outcomes),
        higher_is_better=metric.higher_is_better,
        confidence=CONFIDENCE,
        signature=metric.signature(),
        details={**metric.details(outcomes), "interval": kind},
    )


def difference(metric: Measure, a: Sequence[Outcome], b: Sequence[Outcome], seed: int) -> Difference:
    """The metric on `a` minus on `b` with its 95 % interval; rows are paired by their origin, in any order.

    Raises:
        UserError: There are no rows, or the two were not scored on the same rows.
    """
    _refuse_empty(metric, a)
    b = _paired(a, b)
    both = metric.statistics([*a, *b])  # together, so that both have the same classes in the same columns
    a_NS, b_NS = both[: len(a)], both[len(a) :]
    value = float(metric.value(a_NS.sum(axis=0)) - metric.value(b_NS.sum(axis=0)))
    if metric.is_rate:
        low, high = newcombe(a_NS[:, 0], b_NS[:, 0])
    else:
        low, high = _resampled_difference(metric, a_NS, b_NS, value, seed)
    return Difference(
        metric=metric.key(),
        value=value,
        low=min(low, value),
        high=max(high, value),
        num_rows=len(a),
        higher_is_better=metric.higher_is_better,
    )


def within(metric: Measure, low: float, high: float) -> tuple[float, float]:
    """An interval of a difference without what no two values of the metric can differ by."""
    widest = metric.bounds[1] - metric.bounds[0]
    return max(low, -widest), min(high, widest)


def wilson(hits: float, num_rows: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927)."""
    z = _z(confidence)
    rate = hits / num_rows
    middle = rate + z * z / (2 * num_rows)
    half = z * sqrt(rate * (1 - rate) / num_rows + z * z / (4 * num_rows**2))
    scale = 1 + z * z / num_rows
    low = 0.0 if hits == 0 else (middle - half) / scale
    high = 1.0 if hits == num_rows else (middle + half) / scale
    return low, high


def newcombe(hits_a: Array, hits_b: Array, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the difference of two rates on the same rows (Newcombe 1998, Stat. Med. 17:2635, method 10)."""
    num_rows = len(hits_a)
    both = float((hits_a * hits_b).sum())
    only_a, only_b = float(hits_a.sum()) - both, float(hits_b.sum()) - both
    neither = num_rows - both - only_a - only_b
    rate_a, rate_b = (both + only_a) / num_rows, (both + only_b) / num_rows
    low_a, high_a = wilson(both + only_a, num_rows, confidence)
    low_b, high_b = wilson(both + only_b, num_rows, confidence)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    covariance = both * neither - only_a * only_b
    if covariance > 0:  # continuity-corrected, as the paper does
        covariance = max(covariance - num_rows / 2, 0.0)
    phi = covariance / sqrt(margins) if margins else 0.0
    down = _square_and_add(rate_a - low_a, high_b - rate_b, phi)
    up = _square_and_add(high_a - rate_a, rate_b - low_b, phi)
    return rate_a - rate_b - down, rate_a - rate_b + up


def replicate_counts(num_rows: int, replicates: int, seed: int) -> Iterator[Array]:
    """How often each row is drawn in each bootstrap replicate, [b, R] at a time; the same seed gives the same."""
    random = np.random.default_rng(seed)
    at_once = max(1, min(replicates, CELLS_AT_ONCE // max(1, num_rows)))
    for first in range(0, replicates, at_once):
        size = min(at_once, replicates - first)
        drawn = random.integers(num_rows, size=(size, num_rows))
        drawn += np.arange(size)[:, None] * num_rows
        yield np.bincount(drawn.ravel(), minlength=size * num_rows).reshape(size, num_rows).astype(np.float64)


def _resampled(metric: Measure, statistics_RS: Array, value: float, seed: int) -> tuple[float, float, str]:
    num_rows = len(statistics_RS)
    replicates = np.concatenate(
        [metric.value(counts @ statistics_RS) for counts in replicate_counts(num_rows, REPLICATES, seed)]
    )
    if np.ptp(replicates) == 0:
        return *_at_the_edge(metric, value, num_rows), "edge"
    left_out = metric.value(statistics_RS.sum(axis=0) - statistics_RS)
    return *bca(replicates, value, left_out), "bca"


def _resampled_difference(metric: Measure, a_NS: Array, b_NS: Array, value: float, seed: int) -> tuple[float, float]:
    num_rows = len(a_NS)
    replicates = np.concatenate(
        [
            metric.value(counts @ a_NS) - metric.value(counts @ b_NS)
            for counts in replicate_counts(num_rows, REPLICATES, seed)
        ]
    )
    if np.ptp(replicates) == 0:
        lowest, highest = metric.bounds
        if not (isfinite(lowest) and isfinite(highest)):
            return value, value
        margin = wilson(0, num_rows)[1] * (highest - lowest)
        return within(metric, value - margin, value + margin)
    left_out = metric.value(a_NS.sum(axis=0) - a_NS) - metric.value(b_NS.sum(axis=0) - b_NS)
    return bca(replicates, value, left_out)


def bca(replicates: Array, value: float, left_out: Array, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The bias-corrected and accelerated interval from replicates [B] and jackknife values [R].

    The percentile interval where the correction is not defined (all replicates on one side of the value).
    """
    normal = NormalDist()
    tail = (1 - confidence) / 2
    below = float(((replicates < value).mean() + (replicates <= value).mean()) / 2)
    levels = [tail, 1 - tail]
    centred = left_out.mean() - left_out
    spread = float((centred**2).sum())
    if 0 < below < 1 and spread > 0:
        bias = normal.inv_cdf(below)
        acceleration = float((centred**3).sum()) / (6 * spread**1.5)
        shifted = [bias + normal.inv_cdf(level) for level in levels]
        if all(1 - acceleration * z > 0 for z in shifted):
            levels = [normal.cdf(bias + z / (1 - acceleration * z)) for z in shifted]
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def _at_the_edge(metric: Measure, value: float, num_rows: int) -> tuple[float, float]:
    lowest, highest = metric.bounds
    if not (isfinite(lowest) and isfinite(highest)):
        return value, value
    if num_rows == 1:
        return lowest, highest
    reach = wilson(0, num_rows)[1] * (highest - lowest)
    return max(lowest, value - reach), min(highest, value + reach)


def _square_and_add(one: float, other: float, phi: float) -> float:
    return sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _paired(a: Sequence[Outcome], b: Sequence[Outcome]) -> list[Outcome]:
    by_place = dict(zip(_places(b), b, strict=True))
    places = _places(a)
    missing = [place for place in places if place not in by_place]
    if missing or len(a) != len(b):
        where = missing[0][0] if missing else next(place[0] for place in by_place if place not in set(places))
        raise UserError(
            f"the two were not scored on the same rows ({len(a)} and {len(b)}); only one has {where}.",
            code="rows_differ",
            where=where,
            remedy="Evaluate both on the same file with the same limit.",
        )
    return [by_place[place] for place in places]


def _places(outcomes: Sequence[Outcome]) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    places = []
    for outcome in outcomes:
        places.append((outcome.origin, seen[outcome.origin]))
        seen[outcome.origin] += 1
    return places


def _refuse_empty(metric: Measure, outcomes: Sequence[Outcome]) -> None:
    if not outcomes:
        raise UserError(
            f"there are no rows to score with {metric.name}.",
            code="no_rows",
            remedy="Name a file with at least one row, or a smaller `limit`.",
        )

"""A score over several seeds, and the difference of two: chance in the training and in the choice of rows together.

A method that was trained K times and answered the same R rows each time has two sources of chance. With s² the
variance of the K scores and v the variance that the choice of rows gives the mean over the seeds (delete-one
jackknife over rows, all seeds together; Efron and Stein 1981), the variance of the mean is v + s²/K. What rows and
seeds do together is in both terms, so the sum is a little too large, never too small. The interval is Student's, with
the degrees of freedom of Welch (1947) and Satterthwaite (1946): 3 seeds that differ make it wide, as they should.
Legend: K seeds, R rows, S statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import UserError
from tunesmith.core.intervals import CONFIDENCE, Difference, Measure, difference, score, within
from tunesmith.core.records import Outcome, Score

Array = NDArray[np.float64]
Answers = Sequence[Outcome]


def seeds_score(metric: Measure, runs: Sequence[Answers], seed: int) -> Score:
    """The mean of the metric over runs that differ by their seed, with its 95 % interval over seeds and rows.

    One run is scored as `core/intervals.score` does. `details` holds each seed's value and their standard deviation.

    Raises:
        UserError: There are no rows, or the runs answered different ones.
    """
    if len(runs) == 1:
        return score(metric, runs[0], seed)
    _refuse_different(runs)
    (statistics_KRS,) = _statistics(metric, [runs])
    values_K = _values(metric, statistics_KRS)
    value = float(values_K.mean())
    parts = [_rows_part(_left_out(metric, statistics_KRS)), _seeds_part(values_K)]
    reach = _reach(parts)
    low, high = value - reach, value + reach
    if not reach:  # every answer of every seed is equal: the ends are those of one run
        one = score(metric, runs[0], seed)
        low, high = one.low, one.high
    lowest, highest = metric.bounds
    return Score(
        metric=metric.key(),
        value=value,
        low=max(low, lowest),
        high=min(high, highest),
        num_rows=len(runs[0]),
        higher_is_better=metric.higher_is_better,
        confidence=CONFIDENCE,
        signature=metric.signature(),
        details={"interval": "seeds and rows", "seeds": values_K.tolist(), "seeds_sd": float(values_K.std(ddof=1))},
    )


def seeds_difference(metric: Measure, a: Sequence[Answers], b: Sequence[Answers], seed: int) -> Difference:
    """The mean over the seeds of `a` minus that of `b` with its 95 % interval; rows are paired, seeds are not.

    One run against one is compared as `core/intervals.difference` does. A side with one run counts as exact in its
    seed (a classifier with a closed form has none).

    Raises:
        UserError: There are no rows, or the runs answered different ones.
    """
    if len(a) == len(b) == 1:
        return difference(metric, a[0], b[0], seed)
    _refuse_different([*a, *b])
    a_KRS, b_KRS = _statistics(metric, [a, b])
    a_K, b_K = _values(metric, a_KRS), _values(metric, b_KRS)
    value = float(a_K.mean() - b_K.mean())
    left_out = _left_out(metric, a_KRS) - _left_out(metric, b_KRS)
    reach = _reach([_rows_part(left_out), _seeds_part(a_K), _seeds_part(b_K)])
    low, high = within(metric, value - reach, value + reach)
    return Difference(
        metric=metric.key(),
        value=value,
        low=low,
        high=high,
        num_rows=len(a[0]),
        higher_is_better=metric.higher_is_better,
    )


def _statistics(metric: Measure, sides: Sequence[Sequence[Answers]]) -> list[Array]:
    """[K, R, S] of each side; computed together, so that all have the same classes in the same columns."""
    every = metric.statistics([outcome for runs in sides for run in runs for outcome in run])
    num_rows = len(sides[0][0])
    by_run = every.reshape(-1, num_rows, every.shape[1])
    ends = np.cumsum([len(runs) for runs in sides])[:-1]
    return list(np.split(by_run, ends))


def _values(metric: Measure, statistics_KRS: Array) -> Array:
    return np.asarray(metric.value(statistics_KRS.sum(axis=1)), dtype=np.float64)


def _left_out(metric: Measure, statistics_KRS: Array) -> Array:
    """The mean over seeds with each row left out in turn, [R]."""
    found = [metric.value(one_RS.sum(axis=0) - one_RS) for one_RS in statistics_KRS]
    return np.asarray(np.mean(found, axis=0), dtype=np.float64)


def _rows_part(left_out_R: Array) -> tuple[float, float]:
    """The jackknife's variance and its degrees of freedom."""
    num_rows = len(left_out_R)
    return float(((left_out_R - left_out_R.mean()) ** 2).sum() * (num_rows - 1) / num_rows), max(1.0, num_rows - 1.0)


def _seeds_part(values_K: Array) -> tuple[float, float]:
    """The variance of a mean over seeds and its degrees of freedom."""
    num_seeds = len(values_K)
    return (float(values_K.var(ddof=1)) / num_seeds, num_seeds - 1.0) if num_seeds > 1 else (0.0, 1.0)


def _reach(parts: Sequence[tuple[float, float]]) -> float:
    """Half the interval: Student's quantile at Welch and Satterthwaite's degrees of freedom, times the deviation."""
    from scipy.special import stdtrit

    variance = sum(part for part, _ in parts)
    if not variance:
        return 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * sqrt(variance)


def _refuse_different(runs: Sequence[Answers]) -> None:
    first = [outcome.origin for outcome in runs[0]]
    if not first or any([outcome.origin for outcome in run] != first for run in runs):
        raise UserError(
            "the seeds were not scored on the same rows, or on none.",
            code="rows_differ",
            where=first[0] if first else "",
            remedy="Score every seed on the same file with the same limit.",
        )

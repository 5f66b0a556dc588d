"""Scores over several seeds against values worked by hand, and against how often the truth is covered."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from tunesmith.core.errors import UserError
from tunesmith.core.intervals import difference, score
from tunesmith.core.plugins import build
from tunesmith.core.records import Outcome
from tunesmith.core.seeds import seeds_difference, seeds_score

METRIC = build("metrics", "accuracy")


def answers(hits: list[int]) -> list[Outcome]:
    return [Outcome(origin=f"a:{i}", answer="yes" if hit else "no", reference="yes") for i, hit in enumerate(hits)]


def test_the_interval_is_the_one_worked_by_hand() -> None:
    runs = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0]]
    found = seeds_score(METRIC, [answers(run) for run in runs], seed=1)
    table = np.array(runs, float)
    per_seed, per_row = table.mean(axis=1), table.mean(axis=0)
    of_seeds, of_rows = per_seed.var(ddof=1) / 3, per_row.var(ddof=1) / 4  # the jackknife of a mean is exact
    freedom = (of_seeds + of_rows) ** 2 / (of_seeds**2 / 2 + of_rows**2 / 3)
    reach = student.ppf(0.975, freedom) * (of_seeds + of_rows) ** 0.5
    assert found.value == pytest.approx(7 / 12)
    assert found.low == pytest.approx(max(0.0, 7 / 12 - reach))
    assert found.high == pytest.approx(min(1.0, 7 / 12 + reach))
    assert found.details["seeds"] == pytest.approx([0.75, 0.5, 0.5])
    assert found.details["seeds_sd"] == pytest.approx(np.std([0.75, 0.5, 0.5], ddof=1))


def test_one_seed_is_scored_as_ever() -> None:
    one, other = answers([1, 0, 1, 1]), answers([1, 0, 0, 0])
    assert seeds_score(METRIC, [one], seed=3) == score(METRIC, one, 3)
    assert seeds_difference(METRIC, [one], [other], seed=3) == difference(METRIC, one, other, 3)


def test_seeds_that_all_agree_leave_the_interval_of_the_rows() -> None:
    run = answers([1] * 20)
    found, one = seeds_score(METRIC, [run, run], seed=1), score(METRIC, run, 1)
    assert (found.low, found.high) == (one.low, one.high)
    assert found.low < 1


def test_a_difference_pairs_the_rows_and_not_the_seeds() -> None:
    draw = np.random.default_rng(0)
    hard = draw.random(400)

    def run(skill: float) -> list[Outcome]:
        return answers([int(place < skill) for place in hard + 0.02 * draw.standard_normal(400)])

    better, worse = [run(0.80) for _ in range(3)], [run(0.76) for _ in range(3)]
    found = seeds_difference(METRIC, better, worse, seed=1)
    apart = [seeds_score(METRIC, side, seed=1) for side in (better, worse)]
    assert found.value == pytest.approx(apart[0].value - apart[1].value)
    assert found.is_better
    assert found.high - found.low < apart[0].high - apart[0].low  # rows that are hard for both cancel
    back = seeds_difference(METRIC, worse, better, seed=1)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_the_truth_is_covered_as_often_as_promised() -> None:
    draw = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        rows = draw.normal(0.7, 0.25, 60)  # how likely each row is right, in the mean over all seeds
        runs = []
        for _ in range(3):
            shift = draw.normal(0, 0.03)
            runs.append(answers([int(place) for place in draw.random(60) < rows + shift]))
        found = seeds_score(METRIC, runs, seed=1)
        covered += found.low <= 0.6861 <= found.high  # E[clip(N(0.7, 0.25 and 0.03), 0, 1)]
    assert covered / 300 >= 0.92


def test_different_rows_are_refused() -> None:
    other = [Outcome(origin="b:1", answer="yes", reference="yes")]
    with pytest.raises(UserError, match="not scored on the same rows"):
        seeds_score(METRIC, [answers([1]), other], seed=1)


def test_no_interval_of_a_difference_reaches_beyond_what_two_rates_can_differ_by() -> None:
    a, b = [answers([1, 1, 1]), answers([0, 0, 1])], [answers([0, 0, 0]), answers([1, 0, 0])]
    found = seeds_difference(METRIC, a, b, seed=1)
    assert (found.low, found.high) == (-1.0, 1.0)  # Student's interval with one degree of freedom is wider
    assert found.value == pytest.approx(0.5)

"""Intervals agree with closed forms, published examples, scipy and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tunesmith.core.errors import UserError
from tunesmith.core.intervals import bca, difference, newcombe, replicate_counts, score, wilson
from tunesmith.core.plugins import build
from tunesmith.core.records import Outcome


def table(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [1.0] * (both + only_a) + [0.0] * (only_b + neither)
    b = [1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither
    return np.array(a), np.array(b)


def likelihood(nats: list[float], tokens: list[int]) -> list[Outcome]:
    return [
        Outcome(origin=f"rows:{i}", nll_nats=n, num_scored_tokens=t)
        for i, (n, t) in enumerate(zip(nats, tokens, strict=True))
    ]


def answers(are_right: list[bool]) -> list[Outcome]:
    return [Outcome(origin=f"rows:{i}", reference="yes", answer="yes" if r else "no") for i, r in enumerate(are_right)]


def test_wilson_equals_the_published_example() -> None:
    # Newcombe 1998, Stat. Med. 17:857, table I: 81 of 263
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("hits", "num_rows"), [(0, 96), (2, 96), (48, 96), (96, 96), (0, 1), (7, 12)])
def test_wilson_equals_scipy(hits: int, num_rows: int) -> None:
    expected = stats.binomtest(hits, num_rows).proportion_ci(0.95, "wilson")
    assert wilson(hits, num_rows) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_hit_and_every_hit_have_an_interval_with_a_width() -> None:
    none, every = score(build("metrics", "exact_match"), answers([False] * 96), 1), wilson(96, 96)
    assert (none.value, none.low) == (0, 0)
    assert 0.03 < none.high < 0.05
    assert every[1] == 1
    assert 0.95 < every[0] < 0.97


@pytest.mark.parametrize(
    ("cells", "expected"),
    [((36, 12, 2, 0), (0.0569, 0.3404)), ((36, 14, 0, 0), (0.1528, 0.4167)), ((54, 0, 0, 0), (-0.0664, 0.0664))],
)
def test_newcombe_equals_the_published_examples(cells: tuple[int, ...], expected: tuple[float, float]) -> None:
    # Newcombe 1998, Stat. Med. 17:2635, table III, method 10
    assert newcombe(*table(*cells)) == pytest.approx(expected, abs=5e-5)


def test_newcombe_covers_the_true_difference_about_as_often_as_it_says() -> None:
    random, covered, trials = np.random.default_rng(0), 0, 1500
    for _ in range(trials):
        shared = random.random(96)
        a, b = (shared < 0.5).astype(float), ((shared + random.normal(0, 0.2, 96)) < 0.35).astype(float)
        low, high = newcombe(a, b)
        covered += low <= 0.5 - TRUE_B <= high
    assert 0.93 <= covered / trials <= 0.985


TRUE_B = float(np.mean(stats.norm.cdf((0.35 - np.linspace(0.0005, 0.9995, 1000)) / 0.2)))


def test_counts_sum_to_the_rows_and_depend_on_the_seed_alone() -> None:
    counts = np.concatenate(list(replicate_counts(40, 500, 3)))
    again = np.concatenate(list(replicate_counts(40, 500, 3)))
    other = np.concatenate(list(replicate_counts(40, 500, 4)))
    assert counts.shape == (500, 40)
    assert (counts.sum(axis=1) == 40).all()
    assert (counts == again).all()
    assert (counts != other).any()
    assert counts.var() == pytest.approx(1 - 1 / 40, rel=0.03)  # a multinomial cell's variance


def test_many_rows_are_drawn_in_pieces_with_equal_shape() -> None:
    pieces = list(replicate_counts(1_500_000, 5, 1))
    assert [piece.shape for piece in pieces] == [(2, 1_500_000), (2, 1_500_000), (1, 1_500_000)]


def test_the_bootstrap_equals_scipys_bca_but_for_chance() -> None:
    random = np.random.default_rng(5)
    nats, tokens = random.gamma(1.5, 20, 60), random.integers(3, 30, 60)
    rows = likelihood(nats.tolist(), tokens.tolist())
    ours = [score(build("metrics", "loss"), rows, seed) for seed in range(8)]
    theirs = stats.bootstrap(
        (nats, tokens),
        lambda n, t, axis: n.sum(axis=axis) / t.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="BCa",
        n_resamples=50_000,
        rng=1,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert np.mean([one.low for one in ours]) == pytest.approx(theirs.low, abs=0.02 * width)
    assert np.mean([one.high for one in ours]) == pytest.approx(theirs.high, abs=0.02 * width)
    assert {one.details["interval"] for one in ours} == {"bca"}


def test_bca_equals_the_formula_worked_by_hand() -> None:
    replicates = np.arange(1.0, 1001.0)
    # 600.5 lies above 600 of 1000 replicates: z0 = ppf(0.6); equal jackknife steps left and right: a = 0
    bias = stats.norm.ppf(0.6)
    levels = [stats.norm.cdf(2 * bias + stats.norm.ppf(p)) for p in (0.025, 0.975)]
    low, high = bca(replicates, 600.5, np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx(tuple(np.quantile(replicates, levels)))


def test_the_interval_of_perplexity_is_the_exponential_of_that_of_the_loss() -> None:
    rows = likelihood([12.0, 30.0, 7.0, 18.0, 44.0], [5, 9, 4, 6, 11])
    loss, perplexity = score(build("metrics", "loss"), rows, 1), score(build("metrics", "perplexity"), rows, 1)
    assert perplexity.value == pytest.approx(np.exp(loss.value))
    assert perplexity.low == pytest.approx(np.exp(loss.low), rel=0.03)
    assert perplexity.high == pytest.approx(np.exp(loss.high), rel=0.03)


def test_ninety_five_percent_intervals_of_a_mean_cover_about_95_percent() -> None:
    random, covered = np.random.default_rng(2), 0
    metric = build("metrics", "loss")
    for trial in range(300):
        rows = likelihood(random.exponential(3.0, 40).tolist(), [1] * 40)
        found = score(metric, rows, trial)
        covered += found.low <= 3.0 <= found.high
    assert 0.89 <= covered / 300 <= 0.98


def test_paired_rows_make_the_difference_narrower_than_two_intervals() -> None:
    random = np.random.default_rng(7)
    hard = random.gamma(2, 10, 80)
    tokens = [10] * 80
    before = likelihood(hard.tolist(), tokens)
    after = likelihood((hard * 0.9).tolist(), tokens)
    metric = build("metrics", "loss")
    found = difference(metric, after, before, 1)
    alone = score(metric, before, 1)
    assert found.value == pytest.approx(-0.1 * hard.sum() / 800)
    assert found.high < 0
    assert found.is_better
    assert not found.is_worse
    assert found.high - found.low < (alone.high - alone.low) / 4


def test_the_difference_pairs_rows_by_origin_whatever_their_order() -> None:
    metric = build("metrics", "exact_match")
    a, b = answers([True] * 30 + [False] * 10), answers([False] * 20 + [True] * 20)
    assert difference(metric, a, b, 1) == difference(metric, a[::-1], b, 1) == difference(metric, a, b[::-1], 1)
    assert difference(metric, a, b, 1).value == pytest.approx(0.25)


def test_equal_answers_differ_by_zero_with_an_interval_that_is_not_empty() -> None:
    rows = answers([False] * 96)
    found = difference(build("metrics", "exact_match"), rows, rows, 1)
    assert found.value == 0
    assert found.low < -0.03
    assert found.high > 0.03
    assert not found.is_separated


def test_equal_blue_scores_have_an_interval_that_is_not_empty() -> None:
    rows = [Outcome(origin=f"r:{i}", answer="a b c d e", reference="a b c d e") for i in range(50)]
    metric = build("metrics", "bleu")
    found = difference(metric, rows, rows, 1)
    assert (found.value, found.low < 0 < found.high) == (0, True)
    alone = score(metric, rows, 1)
    assert alone.value == pytest.approx(100)
    assert alone.low == pytest.approx(100 - 100 * wilson(0, 50)[1])
    assert alone.details["interval"] == "edge"


def test_different_rows_cannot_be_compared() -> None:
    a, b = answers([True, False]), [Outcome(origin="other:9", reference="x"), Outcome(origin="rows:0", reference="x")]
    with pytest.raises(UserError, match=r"not scored on the same rows \(2 and 2\); only one has rows:1") as fault:
        difference(build("metrics", "exact_match"), a, b, 1)
    assert fault.value.code == "rows_differ"


def test_rows_that_share_an_origin_are_paired_in_order() -> None:
    a = [Outcome(origin="t:1", reference="x", answer=w) for w in "xyx"]
    b = [Outcome(origin="t:1", reference="x", answer=w) for w in "xyy"]
    assert difference(build("metrics", "exact_match"), a, b, 1).value == pytest.approx(1 / 3)


def test_no_rows_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match="no rows to score with exact_match") as fault:
        score(build("metrics", "exact_match"), [], 1)
    assert fault.value.remedy


def test_thousands_of_rows_and_many_classes_take_seconds() -> None:
    random = np.random.default_rng(1)
    labels = [f"c{i}" for i in range(77)]
    rows = [
        Outcome(origin=f"r:{i}", reference=labels[i % 77], answer=labels[(i + (random.random() < 0.1)) % 77])
        for i in range(3080)
    ]
    found = score(build("metrics", "f1"), rows, 1)
    assert 0.85 < found.low < found.value < found.high < 0.95

"""What holds for every metric in the folder."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict

import numpy as np
import pytest

from tunesmith.core.errors import UserError
from tunesmith.core.intervals import difference, score
from tunesmith.core.plugins import build, names, summary
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Metric

LABELS = ("my card was lost abroad", "no cash came out", "how is a loan paid back")
"""Classes and answers at once: long enough for 4-grams."""


TAGS = (("O", "B-PER", "I-PER"), ("B-LOC", "O", "O"), ("O", "O", "O"))


def rows(metric: Metric, count: int = 60, seed: int = 1, skill: float = 0.7) -> list[Outcome]:
    """Outcomes that hold what the metric needs."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        actual = draw.randrange(len(LABELS))
        found = actual if draw.random() < skill else draw.randrange(len(LABELS))
        label, given = LABELS[actual], LABELS[found]
        if metric.needs == "numbers":
            value = draw.uniform(1, 5)
            label, given = f"{value:.6f}", f"{value + (1 - skill) * draw.uniform(0, 9):.6f}"
        is_tags = metric.needs == "tags"
        made.append(
            Outcome(
                origin=f"rows.jsonl:{i + 1}",
                answer=given,
                reference=label,
                answer_labels=TAGS[found] if is_tags else None,
                reference_labels=TAGS[actual] if is_tags else None,
                fields={"facts": [[label]]},
                probabilities=dict.fromkeys(LABELS, 1 / 3),
                nll_nats=draw.uniform(0, 20),
                num_scored_tokens=draw.randint(1, 9),
                num_answer_tokens=3,
                seconds=draw.uniform(0.01, 0.2),
            )
        )
    return made


@pytest.fixture(params=names("metrics"))
def metric(request: pytest.FixtureRequest) -> Metric:
    built: Metric = build("metrics", request.param)
    return built


def test_it_is_documented(metric: Metric) -> None:
    assert len(summary("metrics", metric.name)) > 20
    for name, field in type(metric).model_fields.items():
        assert field.description, f"{metric.name}.{name} has no string below it"


def test_the_value_is_in_range_and_in_its_interval(metric: Metric) -> None:
    found = score(metric, rows(metric), 1)
    lowest, highest = metric.bounds
    assert lowest <= found.low <= found.value <= found.high <= highest
    assert found.low < found.high
    assert found.num_rows == 60
    assert found.higher_is_better == metric.higher_is_better


def test_statistics_are_finite_one_row_each_and_additive(metric: Metric) -> None:
    a, b = rows(metric, 30, seed=1), rows(metric, 25, seed=2)
    both = metric.statistics([*a, *b])
    assert both.shape[0] == 55
    assert np.isfinite(both).all()
    assert (both >= 0).all()
    if metric.is_ranked:
        return
    apart = metric.statistics(a).sum(axis=0) + metric.statistics(b).sum(axis=0)
    assert both.sum(axis=0) == pytest.approx(apart)
    assert metric.value(both.sum(axis=0)) == pytest.approx(metric.value(apart))


def test_value_works_along_leading_axes(metric: Metric) -> None:
    sums = metric.statistics(rows(metric))[:12].reshape(3, 4, -1)
    values = metric.value(sums)
    assert values.shape == (3, 4)
    assert values[1, 2] == pytest.approx(metric.value(sums[1, 2]))


def test_the_order_of_rows_does_not_matter(metric: Metric) -> None:
    made = rows(metric)
    turned = score(metric, made[::-1], 1)
    assert turned.value == pytest.approx(score(metric, made, 1).value)


def test_a_rate_is_the_share_of_hits(metric: Metric) -> None:
    statistics = metric.statistics(rows(metric))
    is_shaped = statistics.shape[1] == 2 and (statistics[:, 1] == 1).all() and np.isin(statistics[:, 0], (0, 1)).all()
    if metric.is_rate:
        assert is_shaped
        assert metric.value(statistics.sum(axis=0)) == pytest.approx(statistics[:, 0].mean())
    else:
        assert not is_shaped


def test_no_rows_is_a_user_error(metric: Metric) -> None:
    with pytest.raises(UserError, match=f"no rows to score with {metric.name}"):
        score(metric, [], 1)


def test_one_row_has_a_score(metric: Metric) -> None:
    found = score(metric, rows(metric, 1), 1)
    assert math.isfinite(found.value)
    assert found.low <= found.value <= found.high


def test_the_same_seed_gives_the_same_interval(metric: Metric) -> None:
    assert score(metric, rows(metric), 5) == score(metric, rows(metric), 5)


def test_the_score_is_json_with_finite_numbers(metric: Metric) -> None:
    json.dumps(asdict(score(metric, rows(metric), 1)), allow_nan=False)


def test_a_difference_to_itself_is_zero_and_the_better_one_is_found(metric: Metric) -> None:
    made = rows(metric, 120)
    same = difference(metric, made, made, 1)
    assert (same.value, same.is_separated) == (0, False)
    if metric.needs == "likelihood" or metric.name == "latency":
        return
    worse = rows(metric, 120, skill=0.1)
    assert difference(metric, made, worse, 1).is_better
    assert difference(metric, worse, made, 1).is_worse


def test_the_key_names_the_metric_and_what_was_changed(metric: Metric) -> None:
    assert metric.key() == metric.name
    assert metric.heading()


def test_unknown_settings_are_refused_by_name(metric: Metric) -> None:
    with pytest.raises(UserError, match="is not a setting of evaluate"):
        build("metrics", {"name": metric.name, "averrage": 1})

"""Sets of classes, numbers and entities: equal to scikit-learn and scipy, and to values worked by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    precision_score,
    recall_score,
)

from tunesmith.core.confusion import ranks
from tunesmith.core.entities import entities
from tunesmith.core.errors import UserError
from tunesmith.core.intervals import difference, score
from tunesmith.core.plugins import build
from tunesmith.core.records import Outcome

LABELS = ("action", "love", "war")


def sets(count: int = 80) -> list[Outcome]:
    draw = random.Random(3)
    pick = lambda: tuple(label for label in LABELS if draw.random() < 0.4)  # noqa: E731
    return [Outcome(origin=f"r:{i}", answer_labels=pick(), reference_labels=pick()) for i in range(count)]


def marks(sides: list[tuple[str, ...] | None]) -> np.ndarray:
    return np.array([[label in (side or ()) for label in LABELS] for side in sides], dtype=int)


@pytest.mark.parametrize("average", ["micro", "macro", "weighted"])
@pytest.mark.parametrize(
    ("name", "reference"), [("f1", f1_score), ("precision", precision_score), ("recall", recall_score)]
)
def test_sets_of_classes_are_scored_as_scikit_learn_does(name, reference, average) -> None:  # type: ignore[no-untyped-def]
    rows = sets()
    actual, given = marks([r.reference_labels for r in rows]), marks([r.answer_labels for r in rows])
    expected = reference(actual, given, average=average, zero_division=0)
    assert score(build("metrics", {"name": name, "average": average}), rows, 1).value == pytest.approx(expected)


def test_the_accuracy_of_sets_is_that_of_whole_sets() -> None:
    rows = sets()
    actual, given = marks([r.reference_labels for r in rows]), marks([r.answer_labels for r in rows])
    assert score(build("metrics", "accuracy"), rows, 1).value == pytest.approx(accuracy_score(actual, given))


def numbers(count: int = 60, noise: float = 1.0, seed: int = 5) -> list[Outcome]:
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        value = round(draw.uniform(-2, 5), 1)  # rounded, so that some are equal
        rows.append(Outcome(origin=f"r:{i}", answer=f"{round(value + draw.gauss(0, noise), 1)}", reference=f"{value}"))
    return rows


def columns(rows: list[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([float(r.answer) for r in rows]), np.array([float(r.reference) for r in rows])


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("mean_absolute_error", mean_absolute_error),
        ("mean_squared_error", mean_squared_error),
        ("pearson", lambda a, b: pearsonr(a, b).statistic),
        ("spearman", lambda a, b: spearmanr(a, b).statistic),
    ],
)
def test_numbers_are_scored_as_scikit_learn_and_scipy_do(name, reference) -> None:  # type: ignore[no-untyped-def]
    rows = numbers()
    assert score(build("metrics", name), rows, 1).value == pytest.approx(reference(*columns(rows)))
    better, worse = numbers(noise=0.2), numbers(noise=2.0)
    expected = reference(*columns(better)) - reference(*columns(worse))
    found = difference(build("metrics", name), better, worse, 1)
    assert found.value == pytest.approx(expected)
    assert found.is_better


def test_ranks_share_places_as_scipys_do() -> None:
    values = np.array([3.0, 1.0, 3.0, 2.0, 3.0, -1.0])
    assert ranks(values).tolist() == rankdata(values).tolist()


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_side_that_does_not_vary_has_no_correlation(name: str) -> None:
    rows = [Outcome(origin=f"r:{i}", answer="0.1", reference=f"{i}") for i in range(9)]
    assert score(build("metrics", name), rows, 1).value == 0


def test_an_answer_that_is_no_number_is_named() -> None:
    with pytest.raises(UserError, match="the answer 'nan' is no number") as caught:
        score(build("metrics", "pearson"), [Outcome(origin="r:7", answer="nan", reference="1")], 1)
    assert caught.value.where == "r:7"


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (("B-PER", "I-PER", "O", "B-LOC"), [("PER", 0, 2), ("LOC", 3, 4)]),
        (("I-PER", "I-PER", "B-PER", "O"), [("PER", 0, 2), ("PER", 2, 3)]),  # IOB1
        (("I-PER", "I-LOC"), [("PER", 0, 1), ("LOC", 1, 2)]),
        (("B-PER", "E-PER", "S-PER", "S-LOC"), [("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 4)]),  # IOBES
        (("B-PER", "L-PER", "I-PER"), [("PER", 0, 2), ("PER", 2, 3)]),  # BILOU
        (("B-new-york", "I-new-york"), [("new-york", 0, 2)]),
        (("O", "O"), []),
        ((), []),
    ],
)
def test_entities_are_read_by_the_rules_of_conll(tags, found) -> None:  # type: ignore[no-untyped-def]
    assert entities(tags) == found


def test_entity_f1_is_the_value_worked_by_hand() -> None:
    """4 entities there are, 4 are given, 2 of them rightly: one has the wrong end, one the wrong type."""
    rows = [
        Outcome(
            origin="r:1",
            reference_labels=("B-PER", "I-PER", "O", "B-LOC"),
            answer_labels=("B-PER", "I-PER", "O", "B-ORG"),
        ),
        Outcome(
            origin="r:2",
            reference_labels=("B-LOC", "I-LOC", "O", "B-PER"),
            answer_labels=("B-LOC", "O", "O", "B-PER"),
        ),
    ]
    found = score(build("metrics", "entity_f1"), rows, 1)
    assert found.value == pytest.approx(2 * 2 / (4 + 4))
    assert (found.details["precision"], found.details["recall"]) == (0.5, 0.5)
    assert {kind: one["value"] for kind, one in found.details["per_type"].items()} == {"LOC": 0, "ORG": 0, "PER": 1}
    macro = score(build("metrics", {"name": "entity_f1", "average": "macro"}), rows, 1)
    assert macro.value == pytest.approx(1 / 3)
    assert score(build("metrics", "tag_accuracy"), rows, 1).value == pytest.approx(6 / 8)


def test_tags_that_mark_no_entities_are_not_scored_as_such() -> None:
    rows = [Outcome(origin="r:1", reference_labels=("NOUN", "VERB"), answer_labels=("NOUN", "NOUN"))]
    with pytest.raises(UserError, match='the tag "NOUN" is no part of an entity'):
        score(build("metrics", "entity_f1"), rows, 1)
    assert score(build("metrics", "tag_accuracy"), rows, 1).value == 0.5

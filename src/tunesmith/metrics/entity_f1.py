"""Share of entities found with the right words and type: F1 as CoNLL scores named entities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from tunesmith.core.confusion import Average, averaged, ratio
from tunesmith.core.entities import entities, is_entity_tag
from tunesmith.core.errors import UserError
from tunesmith.core.records import Outcome
from tunesmith.metrics.base import Array, Metric


class EntityF1(Metric):
    """An entity counts where its type, its first and its last word are right (Tjong Kim Sang & De Meulder 2003).

    Counts of each type are summed over rows, as conlleval and seqeval do; 0 where the denominator is 0.
    """

    title: ClassVar[str] = "entity F1"
    needs: ClassVar[Literal["tags"]] = "tags"

    average: Average = "micro"
    """`micro`: over all entities together, as CoNLL; `macro`: every type counts the same; `weighted`: by frequency."""

    def statistics(self, outcomes: Sequence[Outcome]) -> Array:
        return _counts(outcomes, _types(outcomes))

    def value(self, sums: Array) -> Array:
        return averaged(sums, _f1, self.average)

    def details(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        kinds = _types(outcomes)
        right, given, actual = np.split(_counts(outcomes, kinds).sum(axis=0), 3)
        return {
            "precision": float(ratio(right.sum(), given.sum())),
            "recall": float(ratio(right.sum(), actual.sum())),
            "per_type": {
                kind: {"value": float(_f1(right[i], given[i], actual[i])), "num_entities": int(actual[i])}
                for i, kind in enumerate(kinds)
            },
        }


def _types(outcomes: Sequence[Outcome]) -> list[str]:
    """The types that occur, by name.

    Raises:
        UserError: The tags mark no entities.
    """
    kinds: set[str] = set()
    for outcome in outcomes:
        for tags in (outcome.reference_labels or (), outcome.answer_labels or ()):
            strange = next((tag for tag in tags if not is_entity_tag(tag)), None)
            if strange is not None:
                raise UserError(
                    f'the tag "{strange}" is no part of an entity (B-PER, I-PER, O).',
                    code="metric_unfit",
                    where=outcome.origin,
                    remedy="Score tag_accuracy, or give numbered tags their names with data.format.names.",
                )
            kinds |= {kind for kind, _, _ in entities(tags)}
    return sorted(kinds)


def _counts(outcomes: Sequence[Outcome], kinds: Sequence[str]) -> Array:
    """Right, given and actual entities of each row and type, [R, 3C]."""
    index = {kind: i for i, kind in enumerate(kinds)}
    counts = np.zeros((len(outcomes), 3, len(kinds)))
    for row, outcome in zip(counts, outcomes, strict=True):
        given = set(entities(outcome.answer_labels or ()))
        actual = set(entities(outcome.reference_labels or ()))
        for place, found in enumerate((given & actual, given, actual)):
            for kind, _, _ in found:
                row[place, index[kind]] += 1
    return counts.reshape(len(outcomes), 3 * len(kinds))


def _f1(right: Array, given: Array, actual: Array) -> Array:
    return ratio(2 * right, given + actual)

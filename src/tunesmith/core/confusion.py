"""Counts of classes: the additive statistics behind precision, recall and F1.

Legend: R rows, C classes. Columns are C times right, then C times given (predicted), then C times actual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.records import Outcome

Array = NDArray[np.float64]
Average = Literal["macro", "micro", "weighted"]
Formula = Callable[[Array, Array, Array], Array]
"""From right, given and actual to a value, element by element."""


def ratio(above: Array, below: Array) -> Array:
    """`above / below`, and 0 where `below` is 0."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below != 0)


def class_names(outcomes: Sequence[Outcome]) -> list[str]:
    """The classes, in the model's order where it gave probabilities, then those met elsewhere by name."""
    known = dict.fromkeys(label for outcome in outcomes[:1] for label in outcome.probabilities)
    met = {outcome.reference for outcome in outcomes} | {outcome.answer for outcome in outcomes}
    return [*known, *sorted(met - set(known))]


def confusion(outcomes: Sequence[Outcome], labels: Sequence[str]) -> Array:
    """How often class i (row) was given class j (column), [C, C]."""
    index = {label: i for i, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)))
    for outcome in outcomes:
        matrix[index[outcome.reference], index[outcome.answer]] += 1
    return matrix


def class_counts(outcomes: Sequence[Outcome], labels: Sequence[str]) -> Array:
    """Right, given and actual of each row and class, [R, 3C]."""
    index = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(outcomes), 3, len(labels)))
    for row, outcome in zip(counts, outcomes, strict=True):
        row[1, index[outcome.answer]] = 1
        row[2, index[outcome.reference]] = 1
    counts[:, 0] = counts[:, 1] * counts[:, 2]
    return counts.reshape(len(outcomes), 3 * len(labels))


def averaged(sums: Array, formula: Formula, average: Average) -> Array:
    """A formula of right, given and actual, averaged over the classes that occur: [..., 3C] to [...]."""
    right, given, actual = np.split(sums, 3, axis=-1)
    if average == "micro":
        return formula(right.sum(axis=-1), given.sum(axis=-1), actual.sum(axis=-1))
    weight = actual if average == "weighted" else ((given + actual) > 0).astype(np.float64)
    return ratio((formula(right, given, actual) * weight).sum(axis=-1), weight.sum(axis=-1))


def per_class(sums: Array, formula: Formula, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """The formula's value of each class that occurs, and its number of rows."""
    right, given, actual = np.split(sums, 3)
    values = formula(right, given, actual)
    return {
        label: {"value": float(values[i]), "num_rows": int(actual[i])}
        for i, label in enumerate(labels)
        if given[i] + actual[i] > 0
    }

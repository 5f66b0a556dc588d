"""Counts of classes and sums of numbers: the additive statistics behind precision, recall, F1 and correlations.

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
    met = {label for outcome in outcomes for label in given_classes(outcome) | actual_classes(outcome)}
    return [*known, *sorted(met - set(known))]


def given_classes(outcome: Outcome) -> frozenset[str]:
    """The class that was given, or the set of them."""
    return frozenset((outcome.answer,) if outcome.answer_labels is None else outcome.answer_labels)


def actual_classes(outcome: Outcome) -> frozenset[str]:
    """The class of the reference, or the set of them."""
    return frozenset((outcome.reference,) if outcome.reference_labels is None else outcome.reference_labels)


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
        row[1, [index[label] for label in given_classes(outcome)]] = 1
        row[2, [index[label] for label in actual_classes(outcome)]] = 1
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


def moments(x_R: Array, y_R: Array) -> Array:
    """1, x, y, x², y² and xy of each row, [R, 6]."""
    return np.stack([np.ones(len(x_R)), x_R, y_R, x_R**2, y_R**2, x_R * y_R], axis=-1)


def correlation(sums: Array) -> Array:
    """Pearson's correlation from summed moments, [..., 6] to [...]; 0 where one side does not vary."""
    count, x, y, xx, yy, xy = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    spread_x, spread_y = count * xx - x * x, count * yy - y * y
    noise = 1e-12  # what rounding leaves of a spread of zero
    varies = (spread_x > noise * count * xx) & (spread_y > noise * count * yy)
    below = np.sqrt(np.where(varies, spread_x, 1.0)) * np.sqrt(np.where(varies, spread_y, 1.0))
    return np.where(varies, np.clip((count * xy - x * y) / below, -1.0, 1.0), 0.0)


def ranks(values: Array) -> Array:
    """The place of each value among all, from 1; equal values share their mean place."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    mean_place: Array = (last - (sizes - 1) / 2)[group]
    return mean_place

"""A text, or a pair of texts, with a number to give.

{"text", "score": 3.5}, {"sentence1", "sentence2", "similarity": 0.8}. A "label" with decimals ("3.8") is read so too;
whole numbers under "label" are classes: set `data.format: regression` where they are amounts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import NumberExample, Origin
from tunesmith.data.columns import find_column, other_columns, text_columns, text_of
from tunesmith.formats.base import Format, RowFault

NUMBER = (
    "score",
    "similarity",
    "similarity_score",
    "relatedness_score",
    "relatedness",
    "target",
    "value",
    "label",
    "rating",
    "stars",
)
AMBIGUOUS = ("label", "rating", "stars")
"""Columns whose whole numbers are usually classes."""


class Regression(Format):
    """Rows of a text and a number."""

    def matches(self, row: Mapping[str, Any]) -> float:
        first, second = text_columns(row)
        name = find_column(row, NUMBER)
        if not first or not name or not isinstance(row[first], str) or _number(row[name]) is None:
            return 0.0
        if name in AMBIGUOUS:
            has_point = isinstance(row[name], float) or (isinstance(row[name], str) and "." in row[name])
            is_whole = float(row[name]).is_integer()
            return (0.7 if is_whole else 1.0) if has_point else 0.1
        has_label = bool(find_column(row, ("label", "category", "intent", "class", "labels")))
        if second:
            return 0.5 if has_label else 0.85
        return 0.8 if len(row) <= 3 and not has_label else 0.2  # web text carries a "score" among other columns

    def read(self, row: Mapping[str, Any], origin: Origin) -> NumberExample:
        first, second = text_columns(row)
        name = find_column(row, NUMBER)
        if not first or not name:
            missing = "text" if not first else "score"
            raise RowFault("missing_column", f'the row has no "{missing}"', "name its column with data.columns")
        value = _number(row[name])
        if value is None:
            raise RowFault(
                "not_a_number", f'"{name}" is {str(row[name])[:40]!r}, not a number', "write a finite number"
            )
        return NumberExample(
            origin=origin,
            text=text_of(row, first),
            text_pair=text_of(row, second) if second else "",
            value=value,
            fields=other_columns(row, {first, second, name}),
        )

    def describe(self) -> str:
        return 'text and number: {"text", "score": 3.5}, {"sentence1", "sentence2", "similarity"}'


def _number(value: Any) -> float | None:
    """The finite number that a cell holds; None where it holds something else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None

"""A text, or a pair of texts, with any number of classes.

{"text", "labels": ["a", "b"]}, also under "categories", "genres", "topics", "tags" or "keywords", and as one text with
marks between the labels: "a|b", "a;b", "a, b". An empty list is a row that belongs to no class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import MultiLabelExample, Origin
from tunesmith.data.columns import find_column, other_columns, parsed, text_columns, text_of
from tunesmith.formats.base import Format, RowFault

LABELS = ("labels", "label", "categories", "genres", "topics", "emotions", "tags", "keywords")
SEPARATORS = ("|", ";", ",")
MAX_LABEL_CHARACTERS = 200


class MultiLabel(Format):
    """Rows of a text and its labels."""

    separator: str = ""
    """What stands between labels in one text; left out: the first of | ; , that the row holds."""

    def matches(self, row: Mapping[str, Any]) -> float:
        first, _ = text_columns(row)
        name = find_column(row, LABELS)
        if not first or not name or not isinstance(row[first], str):
            return 0.0
        value = row[name]
        if isinstance(value, list):
            return 0.9 if all(isinstance(label, str | int) for label in value) else 0.0
        if not isinstance(value, str) or name == "label":
            return 0.0
        is_list = value.lstrip().startswith("[")
        return 0.95 if is_list or any(mark in value for mark in SEPARATORS) else 0.7

    def read(self, row: Mapping[str, Any], origin: Origin) -> MultiLabelExample:
        first, second = text_columns(row)
        name = find_column(row, LABELS)
        if not first or not name:
            missing = "text" if not first else "labels"
            raise RowFault("missing_column", f'the row has no "{missing}"', "name its column with data.columns")
        return MultiLabelExample(
            origin=origin,
            text=text_of(row, first),
            text_pair=text_of(row, second) if second else "",
            labels=tuple(sorted(set(self._labels(row[name], name)))),
            fields=other_columns(row, {first, second, name}),
        )

    def describe(self) -> str:
        return 'text and labels: {"text", "labels": ["…", "…"]}, {"text", "labels": "a|b"}'

    def _labels(self, value: Any, name: str) -> list[str]:
        value = parsed(value, name)
        if isinstance(value, str):
            mark = self.separator or next((mark for mark in SEPARATORS if mark in value), "")
            value = [part for part in (value.split(mark) if mark else [value]) if part.strip()]
        if value is None:
            value = []
        if not isinstance(value, list) or not all(isinstance(label, str | int) for label in value):
            raise RowFault("bad_label", f'"{name}" is no list of labels', 'write ["a", "b"], or "a|b"')
        labels = [str(label).strip() for label in value]
        if any(not label or len(label) > MAX_LABEL_CHARACTERS for label in labels):
            raise RowFault("bad_label", f'a label of "{name}" is empty or a long text', "a label is a short name")
        return labels

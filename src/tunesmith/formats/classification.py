"""A text, or a pair of texts, with its class.

{"text", "label"} and the usual other names ("category", "intent", "class", "sentiment"; "sentence"); pairs as
{"text", "text_pair"}, {"sentence1", "sentence2"} or {"premise", "hypothesis"}. Labels that are numbers become text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import LabelExample, Origin
from tunesmith.data.columns import find_column, other_columns, text_of
from tunesmith.formats.base import Format, RowFault

PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("text", "text_pair"),
)
TEXT = ("text", "sentence", "content", "utterance", "review", "comment", "tweet", "title")
LABEL = ("label", "category", "intent", "class", "sentiment", "labels", "label_text", "topic", "is_duplicate")
MAX_LABEL_CHARACTERS = 200


class Classification(Format):
    """Rows of a text and its label."""

    def matches(self, row: Mapping[str, Any]) -> float:
        first, _, label = _columns(row)
        if not first or not label or not isinstance(row[first], str):
            return 0.0
        if not isinstance(row[label], str | int | float | None) or len(str(row[label])) > MAX_LABEL_CHARACTERS:
            return 0.0
        return 0.8 if label == "label" else 0.75

    def read(self, row: Mapping[str, Any], origin: Origin) -> LabelExample:
        first, second, label = _columns(row)
        if not first or not label:
            missing = "text" if not first else "label"
            raise RowFault("missing_column", f'the row has no "{missing}"', "name its column with data.columns")
        return LabelExample(
            origin=origin,
            text=text_of(row, first),
            text_pair=text_of(row, second) if second else "",
            label=_label(row[label], label),
            fields=other_columns(row, {first, second, label}),
        )

    def describe(self) -> str:
        return 'text and label: {"text", "label"}, {"sentence1", "sentence2", "label"}, …'


def _columns(row: Mapping[str, Any]) -> tuple[str, str, str]:
    label = find_column(row, LABEL)
    for first, second in PAIRS:
        found = find_column(row, (first,))
        if found and (other := find_column(row, (second,))):
            return found, other, label
    return find_column(row, TEXT), "", label


def _label(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int) and str(value).strip():
        text = str(value).strip()
        if len(text) <= MAX_LABEL_CHARACTERS:
            return text
        raise RowFault("bad_label", f'"{name}" has {len(text)} characters', "a label is a name, not a text")
    if value is None or value == "":
        raise RowFault("no_label", f'"{name}" is empty', "give the row its label or delete it")
    raise RowFault("bad_label", f'"{name}" is of type {type(value).__name__}', "write one label as text or number")

"""A text, or a pair of texts, with its class.

{"text", "label"} and the usual other names ("category", "intent", "class", "sentiment"; "sentence"); pairs as
{"sentence1", "sentence2"}, {"premise", "hypothesis"}, {"question", "sentence"}, …. Labels that are numbers become text.
For a model that writes text, `as_chat` makes a question of the text and an answer of the label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import ChatExample, LabelExample, Message, Origin
from tunesmith.data.columns import find_column, other_columns, text_columns, text_of
from tunesmith.formats.base import Format, RowFault

LABEL = ("label", "category", "intent", "class", "sentiment", "labels", "label_text", "topic", "is_duplicate")
MAX_LABEL_CHARACTERS = 200


class Classification(Format):
    """Rows of a text and its label."""

    as_chat: bool = False
    """Make each row a short conversation with the label as the answer, for `sft` and `seq2seq`; `exact_match` is then
    the accuracy, and an answer that is no label counts as wrong."""
    instruction: str = ""
    """With `as_chat`: what stands before the text, e.g. the question and the labels to choose from."""

    def matches(self, row: Mapping[str, Any]) -> float:
        first, _ = text_columns(row)
        label = find_column(row, LABEL)
        if not first or not label or not isinstance(row[first], str):
            return 0.0
        if not isinstance(row[label], str | int | float | None) or len(str(row[label])) > MAX_LABEL_CHARACTERS:
            return 0.0
        return 0.8 if label == "label" else 0.75

    def read(self, row: Mapping[str, Any], origin: Origin) -> LabelExample | ChatExample:
        first, second = text_columns(row)
        label = find_column(row, LABEL)
        if not first or not label:
            missing = "text" if not first else "label"
            raise RowFault("missing_column", f'the row has no "{missing}"', "name its column with data.columns")
        text, pair = text_of(row, first), text_of(row, second) if second else ""
        name = _label(row[label], label)
        fields = other_columns(row, {first, second, label})
        if not self.as_chat:
            return LabelExample(origin=origin, text=text, text_pair=pair, label=name, fields=fields)
        question = "\n\n".join(part for part in (self.instruction, text, pair) if part)
        messages = (Message("user", question), Message("assistant", name))
        return ChatExample(origin=origin, messages=messages, fields=fields)

    def describe(self) -> str:
        return 'text and label: {"text", "label"}, {"sentence1", "sentence2", "label"}, …'


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

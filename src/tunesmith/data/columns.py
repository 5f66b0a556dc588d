"""Find a row's columns by their usual names, whatever their case, and take text out of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tunesmith.data.json_text import JsonFault, parse_json
from tunesmith.formats.base import RowFault

TEXT_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("claim", "evidence"),
    ("text", "text_pair"),
)
TEXT = ("text", "sentence", "content", "utterance", "review", "comment", "tweet", "title")


def find_column(row: Mapping[str, Any], names: Iterable[str]) -> str:
    """The first of `names` that the row has (exactly, else in another case), or ""."""
    folded: dict[str, str] | None = None
    for name in names:
        if name in row:
            return name
        if folded is None:
            folded = {key.casefold(): key for key in row}
        if name in folded:
            return folded[name]
    return ""


def text_columns(row: Mapping[str, Any]) -> tuple[str, str]:
    """The columns of a text to judge and of the text beside it; "" where there is none."""
    for first, second in TEXT_PAIRS:
        found = find_column(row, (first,))
        if found and (other := find_column(row, (second,))):
            return found, other
    return find_column(row, TEXT), ""


def is_text(value: Any) -> bool:
    """Whether a cell can be read as text: a string, or a number (but no boolean)."""
    return isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool))


def text_of(row: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    """The text of a column.

    Raises:
        RowFault: It is missing, no text, or empty.
    """
    value = row.get(name)
    if value is None:
        value = ""
    if not is_text(value):
        kind = type(value).__name__
        raise RowFault("not_text", f'"{name}" is of type {kind}, not text', "write text, or name another column")
    text = str(value)
    if not may_be_empty and (not text or text.isspace()):
        raise RowFault("empty_content", f'"{name}" is empty', "fill it or delete the row")
    return text


def other_columns(row: Mapping[str, Any], used: Collection[str]) -> dict[str, Any]:
    """The columns that a format did not use."""
    return {key: value for key, value in row.items() if key not in used}


def parsed(value: Any, name: str) -> Any:
    """The value, or what its JSON text holds: CSV and Parquet keep lists as text.

    Raises:
        RowFault: It looks like JSON and is not.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return parse_json(value)
    except JsonFault as fault:
        raise RowFault("invalid_json", f'"{name}" is not JSON: {fault.message}', fault.remedy) from None


def to_json(value: Any) -> str:
    """Compact JSON with keys in their order."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))

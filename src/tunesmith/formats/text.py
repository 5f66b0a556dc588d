"""Plain text, to be continued: one column with running text.

{"text": "Once upon a time ..."}; also "content" or "raw_content". Text files arrive in this shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import Origin, TextExample
from tunesmith.data.columns import find_column, other_columns, text_of
from tunesmith.formats.base import Format, RowFault

TEXT = ("text", "content", "raw_content")


class Text(Format):
    """Rows of running text."""

    def matches(self, row: Mapping[str, Any]) -> float:
        name = find_column(row, TEXT)
        if not name or not isinstance(row[name], str):
            return 0.0
        return 0.6 if len(row) == 1 else 0.3

    def read(self, row: Mapping[str, Any], origin: Origin) -> TextExample:
        name = find_column(row, TEXT)
        if not name:
            raise RowFault("missing_column", 'the row has no "text"', "name its column with data.columns")
        return TextExample(origin=origin, text=text_of(row, name), fields=other_columns(row, {name}))

    def describe(self) -> str:
        return 'plain text: {"text"}'

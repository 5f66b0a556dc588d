"""A source text and its target text, for models that read one and write the other.

{"source", "target"}, {"src", "tgt"}, {"document", "summary"}, {"article", "highlights"}, and {"mr", "ref"} of the
data-to-text sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import Origin, PairExample
from tunesmith.data.columns import find_column, is_text, other_columns, text_of
from tunesmith.formats.base import Format, RowFault

PAIRS = (
    ("source", "target"),
    ("src", "tgt"),
    ("input", "target"),
    ("document", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("dialogue", "summary"),
    ("content", "summary"),
    ("text", "summary"),
    ("text", "target"),
    ("mr", "ref"),
)


class Pair(Format):
    """Rows of a source and a target."""

    def matches(self, row: Mapping[str, Any]) -> float:
        source, target = _columns(row)
        if not source or not is_text(row[source]) or not is_text(row[target]):
            return 0.0
        return 0.82 if source in ("source", "src") else 0.72

    def read(self, row: Mapping[str, Any], origin: Origin) -> PairExample:
        source, target = _columns(row)
        if not source:
            raise RowFault(
                "missing_column", "the row has no source with its target", "name the columns with data.columns"
            )
        return PairExample(
            origin=origin,
            source=text_of(row, source),
            target=text_of(row, target),
            fields=other_columns(row, {source, target}),
        )

    def describe(self) -> str:
        return 'source and target: {"source", "target"}, {"document", "summary"}, …'


def _columns(row: Mapping[str, Any]) -> tuple[str, str]:
    for source, target in PAIRS:
        found = find_column(row, (source,))
        if found and (other := find_column(row, (target,))):
            return found, other
    return "", ""

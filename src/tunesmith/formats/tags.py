"""The words of a text, each with its tag: names (IOB), parts of speech, chunks.

{"tokens": ["In", "New", "York"], "ner_tags": ["O", "B-LOC", "I-LOC"]}, also "words" with "tags", "labels", "pos_tags";
CoNLL files (.conll, .iob, .bio) arrive in this shape. Tags that are numbers get their names from `names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import Origin, TagExample
from tunesmith.data.columns import find_column, other_columns, parsed
from tunesmith.formats.base import Format, RowFault

WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "ner", "labels", "pos_tags", "pos", "chunk_tags", "entities")


class Tags(Format):
    """Rows of words and their tags."""

    names: tuple[str, ...] = ()
    """Names of tags that are numbers, from 0: [O, B-PER, I-PER, …]."""

    def matches(self, row: Mapping[str, Any]) -> float:
        words, tags = find_column(row, WORDS), find_column(row, TAGS)
        if not words or not tags:
            return 0.0
        if _looks_like_list(row[words]) and _looks_like_list(row[tags]):
            return 0.93
        return 0.0

    def read(self, row: Mapping[str, Any], origin: Origin) -> TagExample:
        names = find_column(row, WORDS), find_column(row, TAGS)
        if not all(names):
            missing = "tags" if names[0] else "tokens"
            raise RowFault("missing_column", f'the row has no "{missing}"', "name its column with data.columns")
        words, tags = (_cells(row, name) for name in names)
        if len(words) != len(tags):
            raise RowFault(
                "tags_unfit",
                f"{_counted(len(words), 'word')} and {_counted(len(tags), 'tag')}",
                "give each word one tag",
            )
        if not words:
            raise RowFault("empty_content", f'"{names[0]}" has no words', "fill it or delete the row")
        blank = next((number for number, word in enumerate(words, 1) if not str(word).strip()), 0)
        if blank:
            raise RowFault("empty_content", f"word {blank} is empty", "delete the word and its tag")
        return TagExample(
            origin=origin,
            words=tuple(str(word).strip() for word in words),
            tags=tuple(self._tag(tag) for tag in tags),
            fields=other_columns(row, set(names)),
        )

    def describe(self) -> str:
        return 'words and tags: {"tokens": ["…"], "ner_tags": ["…"]}, and CoNLL files'

    def _tag(self, tag: Any) -> str:
        if isinstance(tag, int) and self.names:
            if 0 <= tag < len(self.names):
                return self.names[tag]
            raise RowFault("bad_label", f"there is no name for tag {tag}", "complete data.format.names")
        text = str(tag).strip()
        if not text:
            raise RowFault("no_label", "a tag is empty", 'write "O" where a word has none')
        return text


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _looks_like_list(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith("[")
    return isinstance(value, list) and all(isinstance(cell, str | int) for cell in value)


def _cells(row: Mapping[str, Any], name: str) -> list[Any]:
    value = parsed(row[name], name)
    if not isinstance(value, list) or not all(
        isinstance(cell, str | int) and not isinstance(cell, bool) for cell in value
    ):
        raise RowFault("not_a_list", f'"{name}" is no list of words or tags', 'write ["…", "…"]')
    return value

"""JSON files as rows without the whole text in memory: the elements of an array, and lines under another name.

Only what is right is read so: at the first fault the caller reads the file at once, which knows the words for it.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.json_text import JsonFault, parse_at, skip_space
from tunesmith.data.lines import GZIP_FREE_BYTES, MAX_GZIP_RATIO, open_binary

CHUNK_BYTES = 2**20


class BrokenJson(Exception):  # noqa: N818 - the caller says what is wrong
    """Something in the file is not as it should be."""


def shape_of(path: Path, shown: str) -> str:
    """What can be read in parts: "array", "lines", or "" where it cannot, or its bytes are not UTF-8 to the end.

    Raises:
        UserError: The file does not exist or may not be read.
    """
    begin = ""
    try:
        for text in _chunks(path, shown):
            begin = begin or text.lstrip(" \t\n\r")[:1]
        if begin == "{":
            return "lines" if _are_lines(path, shown) else ""
        return "array" if begin == "[" else ""
    except (BrokenJson, UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error):
        return ""


def array_elements(path: Path, shown: str) -> Iterator[tuple[Any, int]]:
    """Each element of the array with the line where it begins; one after which the text goes wrong does not come.

    Raises:
        BrokenJson: The text is no JSON.
    """
    text = _Text(_chunks(path, shown))
    text.position = text.next_mark("[")
    waiting: list[tuple[Any, int]] = []
    is_first = True
    while True:
        if text.mark() == "]" and is_first:
            break
        value = text.value()
        yield from waiting
        waiting, is_first = [value], False
        if text.mark() == "]":
            break
        text.position = text.next_mark(",")
    yield from waiting
    text.position = text.next_mark("]")
    if text.mark():
        raise BrokenJson


def _are_lines(path: Path, shown: str) -> bool:
    """Whether a line break and another object follow the first."""
    text = _Text(_chunks(path, shown))
    text.value()
    text.has_break = False
    return text.mark() == "{" and text.has_break


class _Text:
    """A text that is read as far as it is needed; `position` is in what is held of it."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self._held, self.position = "", 0
        self._line, self._counted = 1, 0
        self.has_break = False

    def mark(self) -> str:
        """The next character that is no white space, which is stepped over; "" at the end."""
        while True:
            begin, self.position = self.position, skip_space(self._held, self.position)
            self.has_break |= "\n" in self._held[begin : self.position]
            if self.position < len(self._held) or not self._more():
                return self._held[self.position : self.position + 1]

    def next_mark(self, wanted: str) -> int:
        """The position after the next mark, which must be this one."""
        if self.mark() != wanted:
            raise BrokenJson
        return self.position + 1

    def value(self) -> tuple[Any, int]:
        """The value that begins at the next mark, and its line."""
        self.mark()
        while True:
            try:
                value, end = parse_at(self._held, self.position)
            except JsonFault:
                end = -1  # it may be cut off by the end of what is held
            if 0 <= end < len(self._held):
                break
            if not self._more():
                raise BrokenJson
        self._line += self._held.count("\n", self._counted, self.position)
        self._counted, self.position = self.position, end
        return value, self._line

    def _more(self) -> bool:
        """Hold at least twice what is left, so that a long value is not tried too often."""
        left = self._held[self.position :]
        self._line += self._held.count("\n", self._counted, self.position)
        self._counted = self.position = 0
        parts, size = [left], 0
        for text in self._chunks:
            parts.append(text)
            size += len(text)
            if size >= len(left):
                break
        self._held = "".join(parts)
        return size > 0


def _chunks(path: Path, shown: str) -> Iterator[str]:
    """Parts of the text, without a byte-order mark.

    Raises:
        BrokenJson: The file unpacks beyond all measure.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    most = max(GZIP_FREE_BYTES, MAX_GZIP_RATIO * path.stat().st_size)
    with open_binary(path, shown) as file:
        while raw := file.read(CHUNK_BYTES):
            if path.suffix == ".gz" and file.tell() > most:
                raise BrokenJson
            yield decoder.decode(raw)
        yield decoder.decode(b"", final=True)

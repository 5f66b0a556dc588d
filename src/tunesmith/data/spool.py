"""Rows of files that cannot be read from any row on (CSV, Parquet, JSON arrays, gzip, text), as lines of one that can.

A line holds the row's columns as JSON. Values that JSON does not know (dates, decimals, bytes) are written in words and
come back as what they were; a line with such a value begins with "!".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

NAME = "rows.jsonl"
_MARK = "\0kind"
_MICROSECOND = timedelta(microseconds=1)
_KINDS: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    datetime: (datetime.isoformat, datetime.fromisoformat),
    date: (date.isoformat, date.fromisoformat),
    time: (time.isoformat, time.fromisoformat),
    timedelta: (lambda value: value // _MICROSECOND, lambda count: count * _MICROSECOND),
    Decimal: (str, Decimal),
    bytes: (bytes.hex, bytes.fromhex),
}
_KIND_NAMES = {kind.__name__: kind for kind in _KINDS}


class NotLarge(Exception):  # noqa: N818 - a way out, not a failure
    """These rows must be held in memory; the text says why."""


class Spool:
    """Rows appended to a new file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=2**20)
        self._size = 0

    def add(self, values: Mapping[str, Any]) -> int:
        """Append a row: the byte at which its line begins.

        Raises:
            NotLarge: It holds a value of a kind that could not be given back.
        """
        offset = self._size
        try:
            text = _PLAIN.encode(values)
        except TypeError:
            text = "!" + _MARKED.encode(values)
        self._size += self._file.write(text.encode("utf-8", "surrogatepass") + b"\n")
        return offset

    def flush(self) -> None:
        """Have everything in the file, for readers."""
        self._file.flush()

    def close(self) -> None:
        """No more rows."""
        self._file.close()


def spooled_row(line: bytes) -> dict[str, Any]:
    """The columns of a row that a spool's line holds."""
    text = line.decode("utf-8", "surrogatepass")
    values: dict[str, Any] = json.loads(text[1:], object_hook=_unmarked) if text[0] == "!" else json.loads(text)
    return values


def _marked(value: Any) -> dict[str, Any]:
    if type(value) not in _KINDS:  # a pandas Timestamp is a datetime, and more
        raise NotLarge(f"a value of the type {type(value).__name__} cannot be written down")
    return {_MARK: type(value).__name__, "value": _KINDS[type(value)][0](value)}


def _unmarked(value: dict[str, Any]) -> Any:
    return _KINDS[_KIND_NAMES[value[_MARK]]][1](value["value"]) if _MARK in value else value


_PLAIN = json.JSONEncoder(ensure_ascii=False)
_MARKED = json.JSONEncoder(ensure_ascii=False, default=_marked)

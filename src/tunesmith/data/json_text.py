"""Strict JSON (RFC 8259) with faults in words: `expected "," at column 61`.

Python's parser also takes NaN and Infinity, keeps the last of repeated keys, lets lone surrogates through (which no
tokenizer can encode) and recurses without a limit; here each of these is a fault.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 100
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_MESSAGES = (
    ("Expecting ',' delimiter", 'expected ","'),
    ("Expecting ':' delimiter", 'expected ":"'),
    ("Expecting property name", "expected a key in double quotes"),
    ("Illegal trailing comma", "a comma before the closing bracket"),
    ("Expecting value", "expected a value"),
    ("Unterminated string", "a string without its closing quote, begun"),
    ("Invalid control character", "a control character inside a string (write it as an escape)"),
    ("Invalid \\u", "a wrong \\u escape"),
    ("Invalid \\", "a wrong escape"),
    ("Extra data", "expected the end"),
)


@dataclass(frozen=True)
class JsonFault(Exception):  # noqa: N818 - a finding about one text
    """Why a text is not acceptable JSON; `position` counts characters from 0."""

    code: str
    message: str
    remedy: str
    position: int


def parse_json(text: str) -> Any:
    """The value of a whole JSON text.

    Raises:
        JsonFault: It is not JSON, or a key is repeated, or it is nested too deeply.
    """
    value, end = parse_at(text, 0)
    end = skip_space(text, end)
    if end != len(text):
        raise JsonFault("invalid_json", f"expected the end at column {_column(text, end)}", "mend the line", end)
    return value


def parse_at(text: str, start: int) -> tuple[Any, int]:
    """The value that starts at `start` (after white space), and where it ends."""
    start = skip_space(text, start)
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as fault:
        raise JsonFault("invalid_json", _in_words(text, fault), "mend the line", fault.pos) from None
    except _RepeatedKey as fault:
        raise JsonFault(
            "repeated_key", f'the key "{fault}" occurs twice in one object', "keep one of them", start
        ) from None
    except RecursionError:
        raise _too_deep(start) from None
    except ValueError as fault:  # NaN, or an integer of more than 4,300 digits
        raise JsonFault("invalid_json", f"{fault}".rstrip("."), "mend the line", start) from None
    _refuse_depth(text, start, end)
    if text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0:
        _refuse_surrogates(value, start)
    return value, end


def elements(text: str, start: int) -> Iterator[tuple[Any, int]]:
    """Each element of the array whose `[` is at `start`, with its position; the last pair is (None, end)."""
    position = skip_space(text, start + 1)
    if text[position : position + 1] == "]":
        yield None, position + 1
        return
    while True:
        value, end = parse_at(text, position)
        yield value, position
        end = skip_space(text, end)
        mark = text[end : end + 1]
        if mark == "]":
            yield None, end + 1
            return
        if mark != ",":
            raise JsonFault("invalid_json", f'expected "," at column {_column(text, end)}', "mend the line", end)
        position = skip_space(text, end + 1)


def skip_space(text: str, start: int) -> int:
    """The position of the next character that is no white space."""
    match = _SPACE.match(text, start)
    return match.end() if match else start


class _RepeatedKey(Exception):  # noqa: N818 - carries the key
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKey(key)
            seen.add(key)
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON (write null)")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _in_words(text: str, fault: json.JSONDecodeError) -> str:
    words = next((words for start, words in _MESSAGES if fault.msg.startswith(start)), fault.msg)
    return f"{words} at column {_column(text, fault.pos)}"


def _column(text: str, position: int) -> int:
    return position - text.rfind("\n", 0, position)


def _too_deep(position: int) -> JsonFault:
    return JsonFault("too_deep", f"nested more than {MAX_DEPTH} levels deep", "flatten or delete the row", position)


def _refuse_depth(text: str, start: int, end: int) -> None:
    if text.count("[", start, end) + text.count("{", start, end) <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text, start, end):
        mark = match.group()
        if mark in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _too_deep(start)
        elif mark in "]}":
            depth -= 1


def _refuse_surrogates(value: Any, position: int) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise JsonFault(
            "lone_surrogate",
            "half of a \\u surrogate pair: no text can hold it",
            "mend or delete the escape",
            position,
        ) from None

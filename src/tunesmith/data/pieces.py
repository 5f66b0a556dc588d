"""Text files in pieces of whole lines, cut at blank lines where there is one and at sentence ends in long lines.

So nothing of a long document is lost to the model's context.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tunesmith.core.records import Origin
from tunesmith.data.lines import Fault, Item, RawRow, read_lines

PIECE_CHARACTERS = 1500
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+")


def read_text(path: Path, shown: str) -> Iterator[Item]:
    """Pieces of up to 1,500 characters; a line that cannot be read ends its piece."""
    held: list[tuple[int, str]] = []
    size = 0
    for line in read_lines(path, shown):
        if isinstance(line, Fault):
            yield from _pieces(held, shown)
            held, size = [], 0
            yield line
            continue
        if "\0" in line[1]:
            yield Fault(Origin(shown, line[0]), "nul_byte", "the line holds a NUL byte", "delete the byte")
            continue
        if held and size + len(line[1]) > PIECE_CHARACTERS:
            cut = _last_blank(held)
            yield from _pieces(held[:cut], shown)
            held = held[cut:]
            size = sum(len(text) + 1 for _, text in held)
        held.append(line)
        size += len(line[1]) + 1
    yield from _pieces(held, shown)


def _last_blank(held: list[tuple[int, str]]) -> int:
    """After the last blank line in the second half of what is held, else after all of it."""
    blanks = (i + 1 for i in range(len(held) - 1, len(held) // 2 - 1, -1) if not held[i][1].strip())
    return next(blanks, len(held))


def _pieces(held: list[tuple[int, str]], shown: str) -> Iterator[RawRow]:
    text = "\n".join(text for _, text in held).strip("\n")
    if not text.strip():
        return
    number = next(number for number, line in held if line)
    for piece in split_long(text, PIECE_CHARACTERS):
        yield RawRow({"text": piece}, Origin(shown, number))


def split_long(text: str, size: int) -> list[str]:
    """The text in pieces of at most `size` characters: whole sentences, else whole words, else cut."""
    if len(text) <= size:
        return [text]
    pieces, current = [], ""
    for sentence in _SENTENCE.split(text):
        for part in _short_parts(sentence, size):
            if current and len(current) + 1 + len(part) > size:
                pieces.append(current)
                current = part
            else:
                current = f"{current} {part}" if current else part
    return [*pieces, current] if current else pieces


def _short_parts(sentence: str, size: int) -> Iterator[str]:
    while len(sentence) > size:
        cut = sentence.rfind(" ", 1, size + 1)
        cut = cut if cut > 0 else size
        yield sentence[:cut].rstrip()
        sentence = sentence[cut:].lstrip()
    if sentence:
        yield sentence

"""Documents as passages for retrieval: Markdown and text files, cut at headings, of at most about 120 words.

A row of a table becomes a sentence with its column names, so that it can be understood alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tunesmith.core.errors import UserError
from tunesmith.core.records import Origin, Passage
from tunesmith.data.lines import Fault, read_lines
from tunesmith.data.pieces import split_long
from tunesmith.data.rows import row_files

MAX_WORDS = 120
_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*$")
_RULE = re.compile(r"\|?[\s:|-]+\|[\s:|-]*$")
_FENCE = re.compile(r"(```|~~~)")
_ITEM = re.compile(r"\s*([-*+]|\d+[.)])\s")
_MARKS = re.compile(r"\*\*|__|`")

Block = tuple[int, str]
"""The line where a paragraph, list item, table row or code block starts, and its text."""


def read_passages(path: str | Path) -> tuple[Passage, ...]:
    """The passages of a file or folder, in order; a title is the headings above, joined with " > ".

    Raises:
        UserError: There is no such path, a file is neither Markdown nor text, or nothing is in it.
    """
    passages: list[Passage] = []
    for file in row_files(path):
        if file.name.removesuffix(".gz").rpartition(".")[2].lower() not in ("md", "txt"):
            raise UserError(
                "documents are Markdown (.md) or text (.txt).",
                code="unknown_type",
                where=str(file),
                remedy="Convert the file, or leave it out of the folder.",
            )
        for title, blocks in _sections(file):
            passages.extend(_passages(title, blocks, str(file)))
    if not passages:
        raise UserError("there is no text in it.", code="empty_file", where=str(path), remedy="Give files with text.")
    return tuple(passages)


def _sections(file: Path) -> Iterator[tuple[str, list[Block]]]:
    """Each heading's path of titles with the blocks under it; without headings the file's name is the title."""
    titles: list[tuple[int, str]] = []
    lines: list[Block] = []
    in_code = False
    for line in read_lines(file, str(file)):
        if isinstance(line, Fault):
            raise line.error()
        in_code ^= bool(_FENCE.match(line[1]))
        heading = None if in_code else _HEADING.match(line[1])
        if heading is None:
            lines.append(line)
            continue
        yield _title(titles, file), _blocks(lines)
        lines = []
        level = len(heading[1])
        titles = [(depth, text) for depth, text in titles if depth < level]
        titles.append((level, _MARKS.sub("", heading[2])))
    yield _title(titles, file), _blocks(lines)


def _title(titles: list[tuple[int, str]], file: Path) -> str:
    return " > ".join(text for _, text in titles) or file.stem


def _blocks(lines: list[Block]) -> list[Block]:
    blocks: list[Block] = []
    header: list[str] = []
    is_open = in_code = False
    for number, text in lines:
        if _FENCE.match(text):
            in_code, is_open = not in_code, False
            continue
        if in_code:
            _extend(blocks, number, text, is_open=is_open, joint="\n")
            is_open = True
        elif text.lstrip().startswith("|"):
            is_open = False
            cells = [_MARKS.sub("", cell).strip() for cell in text.strip().strip("|").split("|")]
            if _RULE.match(text.strip()):
                continue
            if not header:
                header = cells
            else:
                blocks.append((number, _as_sentence(header, cells)))
        elif not text.strip():
            header, is_open = [], False
        else:
            header = []
            words = _MARKS.sub("", text).strip()
            _extend(blocks, number, words, is_open=is_open and not _ITEM.match(text), joint=" ")
            is_open = True
    return blocks


def _extend(blocks: list[Block], number: int, text: str, *, is_open: bool, joint: str) -> None:
    if is_open and blocks:
        blocks[-1] = (blocks[-1][0], f"{blocks[-1][1]}{joint}{text}")
    else:
        blocks.append((number, text))


def _as_sentence(header: list[str], cells: list[str]) -> str:
    parts = [f"{name}: {cell}" if name else cell for name, cell in zip(header, cells, strict=False) if cell]
    return " ".join(part if part.endswith((".", "!", "?")) else f"{part}." for part in parts)


def _passages(title: str, blocks: list[Block], file: str) -> Iterator[Passage]:
    held: list[Block] = []
    num_words = 0
    for number, text in blocks:
        for piece in _short(text):
            size = len(piece.split())
            if held and num_words + size > MAX_WORDS:
                yield _passage(title, held, file)
                held, num_words = [], 0
            held.append((number, piece))
            num_words += size
    if held:
        yield _passage(title, held, file)


def _short(text: str) -> list[str]:
    """The text in pieces of at most `MAX_WORDS` words, at sentence ends where there are any."""
    size = len(text)
    pieces = [text]
    while size > 1 and any(len(piece.split()) > MAX_WORDS for piece in pieces):
        size = size * 2 // 3
        pieces = split_long(text, size)
    return pieces


def _passage(title: str, blocks: list[Block], file: str) -> Passage:
    return Passage("\n".join(text for _, text in blocks), title, Origin(file, blocks[0][0]))

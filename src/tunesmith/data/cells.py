"""Rows of CSV and TSV files: a quoted cell may hold line breaks, and a row's line is where it starts."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from tunesmith.core.errors import UserError
from tunesmith.core.records import Origin
from tunesmith.data.lines import MAX_LINE_BYTES, Fault, Item, RawRow, read_lines


def read_csv(path: Path, shown: str) -> Iterator[Item]:
    """Rows under a header, divided by what the header shows: commas, else semicolons, else tabs."""
    return _read_cells(path, shown, "")


def read_tsv(path: Path, shown: str) -> Iterator[Item]:
    """Rows under a header, divided by tabs."""
    return _read_cells(path, shown, "\t")


def _read_cells(path: Path, shown: str, delimiter: str) -> Iterator[Item]:
    """Rows of cells under a header; a quoted cell may hold line breaks, the row's line is where it starts."""
    csv.field_size_limit(MAX_LINE_BYTES)  # the module keeps this for the whole process
    bad: dict[int, Fault] = {}
    lines = _feed(read_lines(path, shown), bad, shown)
    first = next(lines, None)
    if first is None:
        return
    if not delimiter:
        delimiter = next((mark for mark in (",", ";", "\t") if mark in first), ",")
    reader = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
    header: list[str] = []
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            yield _bad_cells(Origin(shown, start), fault)
            start = reader.line_num + 1
            continue
        origin, start = Origin(shown, start), reader.line_num + 1
        broken = next((bad.pop(number) for number in range(origin.line, start) if number in bad), None) if bad else None
        if broken is not None:
            yield broken
        elif not cells or (not header and not any(map(str.strip, cells))):
            continue
        elif not header:
            header = _header(cells, origin)
        elif len(cells) != len(header):
            message = f"the row has {len(cells)} cells, the header {len(header)}"
            yield Fault(origin, "wrong_columns", message, "mend the row's separators or quotes")
        else:
            yield RawRow(dict(zip(header, cells, strict=True)), origin)


def _feed(lines: Iterator[tuple[int, str] | Fault], bad: dict[int, Fault], shown: str) -> Iterator[str]:
    for line in lines:
        if isinstance(line, Fault):
            bad[line.origin.line] = line
            yield "?\n"
            continue
        number, text = line
        if "\0" in text:
            bad[number] = Fault(Origin(shown, number), "nul_byte", "the row holds a NUL byte", "delete the byte")
        yield text + "\n"


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _header(cells: list[str], origin: Origin) -> list[str]:
    names = [cell.strip() for cell in cells]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None or "" in names:
        what = f'the column "{double}" occurs twice' if double else "a column has no name"
        raise UserError(f"{what}.", code="bad_header", where=str(origin), remedy="Give each column its own name.")
    return names


def _bad_cells(origin: Origin, fault: csv.Error) -> Fault:
    if "unexpected end" in str(fault) or "field limit" in str(fault):
        return Fault(origin, "open_quote", 'a quote (") is opened here and never closed', "close it, or double it")
    return Fault(origin, "bad_cells", f"the cells cannot be told apart: {fault}", 'double each " inside a quoted cell')

"""Read rows of any file and keep where each came from: JSONL, JSON, CSV, TSV, Parquet, text; gzipped; folders.

A text file (.txt, .md) is read in pieces of whole lines of up to 1,500 characters, cut at blank lines where there is
one and at sentence ends where a line is longer: so nothing of a long document is lost to the model's context.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.errors import UserError
from tunesmith.core.records import Origin
from tunesmith.data.json_text import JsonFault, elements, parse_at, parse_json, skip_space
from tunesmith.data.lines import MAX_LINE_BYTES, Fault, missing_file, read_lines, read_whole

PIECE_CHARACTERS = 1500
NOT_ROWS = {"manifest.json", "card.json", "README.md", "LICENSE.md", "LICENSE.txt"}
"""Files of a folder that are about its rows."""
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as its file has it."""

    values: Mapping[str, Any]
    origin: Origin


Item = RawRow | Fault


def read_rows(path: str | Path, *, on_fault: Literal["stop", "skip"] = "stop") -> Iterator[Item]:
    """The rows of a file or folder, in order; with "skip" what cannot be read comes as a `Fault` in its place.

    Raises:
        UserError: The path does not exist, is of an unknown type or holds no row; with "stop", the first fault.
    """
    num_items = 0
    for file in row_files(path):
        for item in _reader(file)(file, str(file)):
            num_items += 1
            if isinstance(item, Fault) and on_fault == "stop":
                raise item.error()
            yield item
    if not num_items:
        raise UserError("there is no row in it.", code="empty_file", where=str(path), remedy="Give a file with rows.")


def row_files(path: str | Path) -> tuple[Path, ...]:
    """The files behind a path: itself, or a folder's files, sorted, without hidden ones.

    Raises:
        UserError: It does not exist, a file's type is unknown, a folder has none, or a link leads out of it.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise missing_file(path, str(path))
        _reader(path)
        return (path,)
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name not in NOT_ROWS and not _is_hidden(p, path)]
    for file in files:
        if not file.resolve().is_relative_to(path.resolve()):
            raise UserError(
                "the link leads out of its folder.", code="link_out", where=str(file), remedy="Name the file itself."
            )
        _reader(file)
    if not files:
        raise UserError("the folder holds no files.", code="empty_file", where=str(path), remedy="Give a file of rows.")
    return tuple(files)


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _reader(path: Path) -> Callable[[Path, str], Iterator[Item]]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = (suffixes[-2] if len(suffixes) > 1 else "") if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])
    if suffix in _READERS and not (suffix == ".parquet" and suffixes[-1] == ".gz"):
        return _READERS[suffix]
    known = ", ".join(sorted(_READERS))
    raise UserError(
        f'"{path.suffix or path.name}" is not a type of file that Tunesmith reads.',
        code="unknown_type",
        where=str(path),
        remedy=f"Known: {known}, each also with .gz (Parquet packs itself).",
    )


def _read_jsonl(path: Path, shown: str) -> Iterator[Item]:
    for line in read_lines(path, shown):
        if isinstance(line, Fault):
            yield line
            continue
        number, text = line
        if not text or text.isspace():
            continue
        origin = Origin(shown, number)
        try:
            yield _row(parse_json(text), origin)
        except JsonFault as fault:
            yield Fault(origin, fault.code, fault.message, fault.remedy)


def _read_json(path: Path, shown: str) -> Iterator[Item]:
    text = read_whole(path, shown)
    if isinstance(text, Fault):
        yield text
        return
    start = skip_space(text, 0)
    if start == len(text):
        return
    try:
        if text[start] == "[":
            yield from _array(text, start, shown, is_whole=True)
            return
        value, end = parse_at(text, start)
        rest = skip_space(text, end)
        is_lines = text[start] == "{" and text[rest : rest + 1] == "{" and "\n" in text[end:rest]
    except JsonFault as fault:
        yield _json_fault(text, fault, shown)
        return
    if is_lines:
        yield from _read_jsonl(path, shown)
        return
    if rest != len(text):
        yield _json_fault(text, _expected_end(text, rest), shown)
        return
    yield from _single_object(text, start, value, shown)


def _array(text: str, start: int, shown: str, *, is_whole: bool) -> Iterator[Item]:
    line, counted = text.count("\n", 0, start) + 1, start
    try:
        end, waiting = start, None
        for value, position in elements(text, start):
            if waiting is not None:
                yield waiting
            line, counted = line + text.count("\n", counted, position), position
            waiting, end = _row(value, Origin(shown, line)), position
        if is_whole and (rest := skip_space(text, end)) != len(text):
            raise _expected_end(text, rest)
    except JsonFault as fault:
        yield _json_fault(text, fault, shown)


def _expected_end(text: str, position: int) -> JsonFault:
    column = position - text.rfind("\n", 0, position)
    return JsonFault("invalid_json", f"expected the end at column {column}", "mend the file", position)


def _single_object(text: str, start: int, value: Any, shown: str) -> Iterator[Item]:
    """The rows of `{"data": [...]}` (one list of objects that are no messages), else the object as one row."""
    if isinstance(value, dict):
        lists = [key for key, inner in value.items() if _is_list_of_rows(inner)]
        if len(lists) == 1:
            yield from _array(text, _value_position(text, start, lists[0]), shown, is_whole=False)
            return
        if value and not all(isinstance(inner, dict) for inner in value.values()):
            yield RawRow(value, Origin(shown, text.count("\n", 0, start) + 1))
            return
    raise UserError(
        "this is one JSON value, not rows.",
        code="wrong_shape",
        where=shown,
        remedy="Put the rows into an array of objects, or one object per line into a .jsonl file.",
    )


def _is_list_of_rows(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
        return False
    return not any({"role", "from"} & set(row) for row in value)


def _value_position(text: str, start: int, wanted: str) -> int:
    position = start + 1
    while True:
        key, end = parse_at(text, position)
        position = skip_space(text, skip_space(text, end) + 1)
        if key == wanted:
            return position
        _, end = parse_at(text, position)
        position = skip_space(text, end) + 1


def _row(value: Any, origin: Origin) -> Item:
    if isinstance(value, dict):
        return RawRow(value, origin)
    if isinstance(value, str):
        return RawRow({"text": value}, origin)
    kind = "null" if value is None else {"bool": "a boolean", "list": "an array"}.get(type(value).__name__, "a number")
    return Fault(origin, "not_an_object", f"the row is {kind}, not an object", "write the row as {...}")


def _json_fault(text: str, fault: JsonFault, shown: str) -> Fault:
    line = text.count("\n", 0, fault.position) + 1
    remedy = "mend the file" if fault.remedy == "mend the line" else fault.remedy
    return Fault(Origin(shown, line), fault.code, f"{fault.message}; what follows was not read", remedy)


def _read_csv(path: Path, shown: str) -> Iterator[Item]:
    return _read_cells(path, shown, "")


def _read_tsv(path: Path, shown: str) -> Iterator[Item]:
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


def _read_parquet(path: Path, shown: str) -> Iterator[Item]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "Parquet files need pyarrow.",
            code="missing_extra",
            where=shown,
            remedy='Run: pip install "tunesmith[parquet]"',
        ) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(values, Origin(shown, number))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as fault:
        reason = str(fault).partition("\n")[0]
        yield Fault(Origin(shown, number + 1), "bad_parquet", f"not readable as Parquet: {reason}", "write it again")


def _read_text(path: Path, shown: str) -> Iterator[Item]:
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


_READERS: dict[str, Callable[[Path, str], Iterator[Item]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
    ".md": _read_text,
}

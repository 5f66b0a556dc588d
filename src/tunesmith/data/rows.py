"""Read rows of any file and keep where each came from: JSONL, JSON, CSV, TSV, Parquet, CoNLL, text; gzipped;
folders.

What a suffix means is in `_READERS`; an unknown one is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.errors import UserError
from tunesmith.core.records import Origin
from tunesmith.data.cells import read_csv, read_tsv
from tunesmith.data.conll import read_conll
from tunesmith.data.json_stream import BrokenJson, array_elements, shape_of
from tunesmith.data.json_text import JsonFault, elements, parse_at, parse_json, skip_space
from tunesmith.data.lines import Fault, Item, RawRow, missing_file, placed_lines, read_whole
from tunesmith.data.pieces import read_text

__all__ = ["Fault", "Item", "RawRow", "read_rows", "row_files"]

NOT_ROWS = {"manifest.json", "card.json", "README.md", "LICENSE.md", "LICENSE.txt"}
"""Files of a folder that are about its rows."""
STREAM_BYTES = 8 * 2**20
"""JSON arrays of this size and more are read element by element, and lines in a `.json` file line by line."""
_BATCH_BYTES = 32 * 2**20
"""Rows of Parquet that are unpacked at once."""


def read_rows(path: str | Path, *, on_fault: Literal["stop", "skip"] = "stop") -> Iterator[Item]:
    """The rows of a file or folder, in order; with "skip" what cannot be read comes as a `Fault` in its place.

    Raises:
        UserError: The path does not exist, is of an unknown type or holds no row; with "stop", the first fault.
    """
    num_items = 0
    for file in row_files(path):
        for item in file_rows(file, str(file)):
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


def file_rows(path: Path, shown: str) -> Iterator[Item]:
    """The rows of one file, in order, `shown` in messages; what cannot be read comes as a `Fault` in its place."""
    return _reader(path)(path, shown)


def placed_rows(path: Path, shown: str) -> Iterator[tuple[int, Item]]:
    """The rows of a file of JSON Lines, each with the byte at which it begins."""
    for line in placed_lines(path, shown):
        if isinstance(line, Fault):
            yield 0, line
            continue
        number, offset, text = line
        if not text or text.isspace():
            continue
        origin = Origin(shown, number)
        try:
            yield offset, row_of_text(text, origin)
        except JsonFault as fault:
            yield offset, Fault(origin, fault.code, fault.message, fault.remedy)


def row_of_text(text: str, origin: Origin) -> Item:
    """The row that a line of JSON holds.

    Raises:
        JsonFault: It is not JSON.
    """
    return _row(parse_json(text), origin)


def is_json_lines(path: Path) -> bool:
    """Whether a file has one row on each line, and can be read from any of them on."""
    return path.suffix.lower() in (".jsonl", ".ndjson")


def is_packed(path: Path) -> bool:
    """Whether a file holds several times its size."""
    return path.suffix.lower() in (".gz", ".parquet")


def why_not_spooled(path: Path) -> str:
    """Why rows of a file would not come back as they were when written as JSON; "" where they would."""
    if path.suffix.lower() == ".parquet":
        pyarrow = _pyarrow(str(path))
        with contextlib.suppress(pyarrow.ArrowException, OSError):
            if any("map<" in str(field.type) for field in pyarrow.parquet.read_schema(path)):
                return f"{path.name} has columns of maps"
    return ""


def _read_jsonl(path: Path, shown: str) -> Iterator[Item]:
    return (item for _, item in placed_rows(path, shown))


def _read_json(path: Path, shown: str) -> Iterator[Item]:
    num_items = 0
    shape = shape_of(path, shown) if path.stat().st_size >= STREAM_BYTES else ""
    if shape == "lines":
        yield from _read_jsonl(path, shown)
        return
    if shape == "array":
        try:
            for value, line in array_elements(path, shown):
                num_items += 1
                yield _row(value, Origin(shown, line))
            return
        except BrokenJson:
            pass
    yield from islice(_read_json_at_once(path, shown), num_items, None)


def _read_json_at_once(path: Path, shown: str) -> Iterator[Item]:
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


def _read_parquet(path: Path, shown: str) -> Iterator[Item]:
    pyarrow = _pyarrow(shown)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            row_bytes = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
            for batch in file.iter_batches(batch_size=max(1, min(4096, _BATCH_BYTES // max(1, row_bytes)))):
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(values, Origin(shown, number))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as fault:
        reason = str(fault).partition("\n")[0]
        yield Fault(Origin(shown, number + 1), "bad_parquet", f"not readable as Parquet: {reason}", "write it again")


def _pyarrow(shown: str) -> Any:
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
    return pyarrow


_READERS: dict[str, Callable[[Path, str], Iterator[Item]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": _read_parquet,
    ".txt": read_text,
    ".md": read_text,
    ".conll": read_conll,
    ".iob": read_conll,
    ".bio": read_conll,
}

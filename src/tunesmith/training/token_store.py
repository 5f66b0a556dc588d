"""Tokenised rows in flat files that are mapped into memory: a row is made when it is asked for.

Each field of `Features` is one column: numbers are one array, tuples of numbers are all their values one after the
other and where each row ends. A column that holds nothing is left out. So ten million rows take no memory but the pages
that are being read, which the system takes back when it needs them.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.records import Origin
from tunesmith.objectives.base import Features

META = "meta.json"
FORMAT = 1
_KINDS = {"tuple[int, ...]": "i4", "float": "f8", "int": "i8"}
"""How each type of field is kept; token ids and labels fit 32 bits."""
_FIELDS = {one.name: str(one.type) for one in dataclasses.fields(Features)}
_TUPLES = tuple(name for name, kind in _FIELDS.items() if kind.startswith("tuple"))
_NUMBERS = tuple(name for name in _FIELDS if name not in _TUPLES)
assert set(_FIELDS.values()) <= set(_KINDS), _FIELDS


@dataclass(slots=True)
class Chunk:
    """Encoded rows in a row, as arrays: what worker processes send and stores are made of.

    `files` and `names` are those of the rows' origins and sources; `file_of` and `name_of` number them.
    """

    num_examples: int
    values: dict[str, array[int]]
    counts: dict[str, array[int]]
    numbers: dict[str, array[Any]]
    files: list[str]
    names: list[str]
    file_of: array[int]
    line_of: array[int]
    name_of: array[int]
    cut: Loss
    empty: Loss

    def __len__(self) -> int:
        return len(self.line_of)


@dataclass(slots=True)
class Loss:
    """Rows of which something was left out: the first, what it lost, and how many there are."""

    where: str = ""
    num_tokens: int = 0
    num_rows: int = 0

    def add(self, other: Loss) -> None:
        """Count the rows of a later part, too."""
        if not self.num_rows:
            self.where, self.num_tokens = other.where, other.num_tokens
        self.num_rows += other.num_rows


def make_chunk(rows: Iterable[tuple[Features, Origin, str]], num_examples: int, cut: Loss, empty: Loss) -> Chunk:
    """Rows with their origins and their sources' names, as arrays."""
    values = {name: array("i") for name in _TUPLES}
    counts = {name: array("q") for name in _TUPLES}
    numbers: dict[str, array[Any]] = {name: array("d" if _FIELDS[name] == "float" else "q") for name in _NUMBERS}
    files: dict[str, int] = {}
    names: dict[str, int] = {}
    file_of, line_of, name_of = array("i"), array("q"), array("i")
    for feature, origin, source in rows:
        for name in _TUPLES:
            ids = getattr(feature, name)
            counts[name].append(len(ids))
            values[name].extend(ids)
        for name in _NUMBERS:
            numbers[name].append(getattr(feature, name))
        file_of.append(files.setdefault(origin.file, len(files)))
        line_of.append(origin.line)
        name_of.append(names.setdefault(source, len(names)))
    return Chunk(num_examples, values, counts, numbers, list(files), list(names), file_of, line_of, name_of, cut, empty)


@dataclass
class StoreWriter:
    """Chunks, one after the other, into the files of a folder."""

    folder: Path
    _ends: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_TUPLES, 0))
    _is_used: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(_FIELDS, False))
    _files: dict[str, int] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)
    num_rows: int = 0
    cut: Loss = field(default_factory=Loss)
    empty: Loss = field(default_factory=Loss)

    def add(self, chunk: Chunk) -> None:
        """Append the chunk's rows."""
        for name in _TUPLES:
            counts = np.frombuffer(chunk.counts[name], dtype=np.int64)
            ends = np.cumsum(counts) + self._ends[name]
            self._append(f"{name}.values", np.frombuffer(chunk.values[name], dtype=np.int32))
            self._append(f"{name}.ends", ends)
            self._ends[name] = int(ends[-1]) if len(ends) else self._ends[name]
            self._is_used[name] |= bool(chunk.values[name])
        for name in _NUMBERS:
            found = np.frombuffer(chunk.numbers[name], dtype=_KINDS[_FIELDS[name]])
            self._append(f"{name}.values", found)
            self._is_used[name] |= bool(found.any())
        lengths = np.frombuffer(chunk.counts["input_ids"], dtype=np.int64) + np.frombuffer(
            chunk.counts["target_ids"], dtype=np.int64
        )
        self._append("lengths", lengths.astype(np.int32))
        self._append("lines", np.frombuffer(chunk.line_of, dtype=np.int64))
        self._append("files", _renumbered(chunk.file_of, chunk.files, self._files))
        self._append("names", _renumbered(chunk.name_of, chunk.names, self._names))
        self.num_rows += len(chunk)
        self.cut.add(chunk.cut)
        self.empty.add(chunk.empty)

    def close(self, **meta: Any) -> None:
        """Drop the columns that hold nothing, and write what the others mean."""
        for name in _FIELDS:
            if not self._is_used[name]:
                for path in self.folder.glob(f"{name}.*"):
                    path.unlink()
        for name, table in (("files", self._files), ("names", self._names)):
            if len(table) == 1:
                (self.folder / name).unlink()
        text = {
            "format": FORMAT,
            "rows": self.num_rows,
            "columns": [name for name in _FIELDS if self._is_used[name]],
            "files": list(self._files),
            "names": list(self._names),
            "cut": dataclasses.asdict(self.cut),
            "empty": dataclasses.asdict(self.empty),
            **meta,
        }
        (self.folder / META).write_text(json.dumps(text, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def _append(self, name: str, values: NDArray[Any]) -> None:
        with (self.folder / name).open("ab") as file:
            file.write(np.ascontiguousarray(values).data)


def _renumbered(numbers: array[int], names: Sequence[str], table: dict[str, int]) -> NDArray[np.int32]:
    """A chunk's numbers of names as the store counts them; new names are added to the table."""
    places = np.asarray([table.setdefault(name, len(table)) for name in names] or [0], dtype=np.int32)
    found: NDArray[np.int32] = places[np.frombuffer(numbers, dtype=np.int32)]
    return found


class StoredFeatures(Sequence[Features]):
    """The rows of a store; each is made anew when it is asked for."""

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self._count = int(meta["rows"])
        columns = meta["columns"]
        self._tuples = {
            name: (mapped(folder / f"{name}.values", "i4"), mapped(folder / f"{name}.ends", "i8"))
            for name in _TUPLES
            if name in columns
        }
        self.numbers = {
            name: mapped(folder / f"{name}.values", _KINDS[_FIELDS[name]]) for name in _NUMBERS if name in columns
        }

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, row: int) -> Features: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[Features, ...]: ...
    def __getitem__(self, row: int | slice) -> Features | tuple[Features, ...]:
        if isinstance(row, slice):
            return tuple(self[number] for number in range(*row.indices(self._count)))
        place = row + self._count if row < 0 else row
        if not 0 <= place < self._count:
            raise IndexError(row)
        found: dict[str, Any] = {"input_ids": (), "labels": (), "weight": 0.0}
        for name, (values, ends) in self._tuples.items():
            found[name] = tuple(values[ends[place - 1] if place else 0 : ends[place]].tolist())
        for name, column in self.numbers.items():
            found[name] = column[place].item()
        return Features(**found)

    def will_need(self, rows: Sequence[int]) -> None:
        """Tell the system which rows are read next; it reads their pages while other work is done."""
        for values, ends in self._tuples.values():
            whole = getattr(values.base, "base", None)  # an array of a memmap of a file
            if not isinstance(whole, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED"):
                return
            for row in rows:
                first = int(ends[row - 1] if row else 0) * values.itemsize
                begin = first - first % mmap.PAGESIZE
                whole.madvise(mmap.MADV_WILLNEED, begin, int(ends[row]) * values.itemsize - begin)


class Origins(Sequence[str]):
    """Where each row came from, as `FILE:LINE`, made when it is asked for."""

    def __init__(self, files: Sequence[str], file_of: NDArray[Any] | None, lines: NDArray[Any]) -> None:
        self._files, self._file_of, self._lines = files, file_of, lines

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[str, ...]: ...
    def __getitem__(self, row: int | slice) -> str | tuple[str, ...]:
        if isinstance(row, slice):
            return tuple(self[number] for number in range(*row.indices(len(self))))
        file = self._files[0 if self._file_of is None else int(self._file_of[row])]
        return str(Origin(file, int(self._lines[row])))


def mapped(path: Path, kind: str) -> NDArray[Any]:
    """The numbers of a file, read only and read when they are used."""
    if not path.stat().st_size:
        return np.zeros(0, dtype=kind)
    return np.asarray(np.memmap(path, dtype=kind, mode="r"))

"""The reading of large files: of every usable row its place, hashes of what decides its side, its classes and its sum.

They are columns of numbers in a folder, 74 bytes a row and 8 for each wish that needs more, written and read in
blocks, so that no number of rows fills the memory. The hashes are those of `split.unit_hash`, so they are names and
places at once.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.events import Emit, Progress
from tunesmith.core.records import Example, Origin
from tunesmith.data.findings import Findings
from tunesmith.data.labels import labels_in
from tunesmith.data.lines import Fault, RawRow
from tunesmith.data.repeats import answer_of, class_of, joined_key, normalise, question_of, shingles_of
from tunesmith.data.rows import file_rows, is_json_lines, placed_rows
from tunesmith.data.split import group_name, row_name
from tunesmith.data.spool import NAME, NotLarge, Spool
from tunesmith.data.stored import Places, Reading, StoredExamples
from tunesmith.data.write import row_digest
from tunesmith.formats.base import RowFault
from tunesmith.recipe import DataSettings

MAX_LABEL_SETS = 100_000
"""More different sets of classes than this are not told apart by a number."""
BLOCK = 2**17
"""Rows that are in memory at once."""
BUCKET = 2**19
"""About as many rows are sorted at once, by their hashes."""
STEP = "train"
PLACES = {"file_of": "u2", "offset": "i8", "line": "u4"}
DRAWS = ("limit", "shots")
"""What chooses rows by a hash of their contents, where it is wished for."""
COLUMNS = {**PLACES, "question": "u8", "key": "u8", "other": "u8", "labels": "i4", "digest": "V32"}
WISHED = {**dict.fromkeys(DRAWS, "u8"), "group": "u8", "size": "u4", "kind": "i8", "shingles": "i8"}
"""Columns that are kept where they are wished for."""
NO_COLUMN, NO_GROUP = 0, 1
"""In "group": rows without the column of `data.split.group_by`, and with nothing in it."""
_KINDS = COLUMNS | WISHED
_TYPES = {"u2": "H", "i8": "q", "u4": "I", "u8": "Q", "i4": "i", "V32": "B"}
Rows = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Columns = list[NDArray[Any]]


@dataclass(frozen=True)
class Wishes:
    """What of the settings decides which columns are kept, and their hashes."""

    split_seed: int
    draw_seed: int
    draws: tuple[str, ...] = ()
    """Of `DRAWS`."""
    group_by: str = ""
    is_near: bool = False
    """Whether rows are compared by their shingles."""

    @classmethod
    def of(cls, settings: DataSettings, seed: int) -> Wishes:
        """Those of a recipe with this seed."""
        split_seed = seed if settings.split.seed == "recipe" else settings.split.seed
        draws = tuple(name for name in DRAWS if getattr(settings, name))
        return cls(split_seed, seed, draws, settings.split.group_by, settings.dedup == "near")

    def columns(self) -> list[str]:
        """The names of all columns that are kept."""
        near = ["size", "kind", "shingles"] if self.is_near else []
        return [*COLUMNS, *self.draws, *(["group"] if self.group_by else []), *near]


class Scan:
    """What is known of the usable rows; rows are named by their numbers in it.

    question: `unit_hash` of each row's question times 2^64. key: that of the whole row. other: another hash of it; two
    rows are the same where both are. labels: the number of the row's set of classes. digest: SHA-256 of its canonical
    form. limit, shots: by what `data.limit` and `data.shots` choose, where they do. group: the hash of its group's name
    where there are groups; then question and key are hashes of the names that rows without a group have (`split.py`).
    size, kind: how many shingles a row has, and a hash of what must not differ in near repetitions, where those are
    sought; the shingles, as hashes, stand one row after another in a file of their own.
    """

    def __init__(self, folder: Path, files: Sequence[str], readings: Sequence[Reading], wishes: Wishes) -> None:
        self.files, self.readings, self.wishes = files, readings, wishes
        self.num_read = 0
        self.label_sets: dict[tuple[str, ...], int] = {}
        self.firsts: dict[str, int] = {}
        """Each source's first usable row."""
        self.spool = folder / NAME
        self._spool = None if all(is_json_lines(Path(file)) for file in files) else Spool(self.spool)
        self.folder = folder
        self.shingles = self._path("shingles")
        self._waiting = {name: array(_TYPES[_KINDS[name]]) for name in wishes.columns()}
        self._num_rows = 0

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, _: TracebackType | None) -> None:
        """Close the spool and delete the columns."""
        if self._spool is not None:
            self._spool.close()
        for name in self._waiting:
            self._path(name).unlink(missing_ok=True)

    def __len__(self) -> int:
        return self._num_rows

    def add(self, file: int, offset: int, row: RawRow, example: Example) -> None:
        """Note a row; that of a file that is not JSON Lines goes to the spool."""
        question = normalise(question_of(example))
        key = joined_key(question, normalise(answer_of(example)))
        waiting = self._waiting
        waiting["file_of"].append(file)
        waiting["offset"].append(offset if offset >= 0 or self._spool is None else self._spool.add(row.values))
        waiting["line"].append(example.origin.line)
        waiting["question"].append(self.name_hash(question))
        waiting["key"].append(self.name_hash(key))
        waiting["other"].append(hash_of(key, "another"))
        waiting["labels"].append(self.label_sets.setdefault(labels_in(example), len(self.label_sets)))
        waiting["digest"].frombytes(row_digest(example))
        for draw in self.wishes.draws:
            waiting[draw].append(hash_of(f"{draw} {key}", self.wishes.draw_seed))
        if self.wishes.group_by:
            waiting["group"].append(self._group_hash(example))
        if self.wishes.is_near:
            shingles = shingles_of(key)
            waiting["size"].append(len(shingles))
            waiting["kind"].append(hash(repr(class_of(example))))  # Python's own hashes are the same within a process
            waiting["shingles"].extend(map(hash, shingles))
        if len(self.label_sets) > MAX_LABEL_SETS:
            raise NotLarge(f"there are more than {MAX_LABEL_SETS:,} different sets of classes")
        self.firsts.setdefault(self.readings[file].source_name, self._num_rows)
        self._num_rows += 1
        if self._num_rows % BLOCK == 0 or (self.wishes.is_near and len(waiting["shingles"]) > 8 * BLOCK):
            self.flush()

    def name_hash(self, text: str) -> int:
        """What "question" and "key" hold for a question and for a whole row, both normalised."""
        return hash_of(row_name(text) if self.wishes.group_by else text, self.wishes.split_seed)

    def flush(self) -> None:
        """Have every row in the files, for what reads them."""
        for name, waiting in self._waiting.items():
            with self._path(name).open("ab") as file:
                waiting.tofile(file)
            del waiting[:]
        if self._spool is not None:
            self._spool.flush()

    def blocks(self, *names: str) -> Iterator[tuple[int, list[NDArray[Any]]]]:
        """These columns from end to end: the first row of a block, and its part of each."""
        for start in range(0, len(self), BLOCK):
            yield start, [self._read(name, start) for name in names]

    def buckets(self, *names: str, of: Callable[[Columns], Columns] = list) -> Iterator[tuple[Rows, Columns]]:
        """All rows in groups by the first column's upper bits, each with its part of the columns, in order.

        `of` makes other columns of those with these names, block by block.
        """
        bits = (len(self) // BUCKET).bit_length()
        for bucket in range(1 << bits if len(self) else 0):
            rows, parts = [], []
            for start, read in self.blocks(*names):
                columns = of(read)
                mine = np.flatnonzero(columns[0] >> np.uint64(64 - bits) == bucket) if bits else slice(None)
                rows.append(np.arange(start, start + len(columns[0]))[mine])
                parts.append([column[mine] for column in columns])
            yield np.concatenate(rows), [np.concatenate(part) for part in zip(*parts, strict=True)]

    def take(self, name: str, rows: Rows) -> NDArray[Any]:
        """A column's values of some rows, in their order."""
        order = np.argsort(rows, kind="stable")
        ordered, found = rows[order], np.zeros(len(rows), _KINDS[name])
        for start in range(0, len(self), BLOCK):
            low, high = np.searchsorted(ordered, (start, start + BLOCK))
            if low < high:
                found[order[low:high]] = self._read(name, start)[ordered[low:high] - start]
        return found

    def origins(self, rows: Rows) -> Iterator[Origin]:
        """Where rows came from, for messages."""
        for file, line in zip(self.take("file_of", rows).tolist(), self.take("line", rows).tolist(), strict=True):
            yield Origin(self.files[file], line)

    def examples(self, rows: Rows) -> StoredExamples:
        """Some rows as examples, read when they are asked for."""
        places = Places(*(self.take(name, rows) for name in PLACES))
        return StoredExamples(places, self.files, self.readings, self.spool)

    def _group_hash(self, example: Example) -> int:
        if self.wishes.group_by not in example.fields:
            return NO_COLUMN
        name = group_name(example, self.wishes.group_by)
        return max(NO_GROUP + 1, hash_of(name, self.wishes.split_seed)) if name else NO_GROUP

    def _read(self, name: str, start: int) -> NDArray[Any]:
        kind = np.dtype(_KINDS[name])
        return np.fromfile(self._path(name), kind, BLOCK, offset=start * kind.itemsize)

    def _path(self, name: str) -> Path:
        return self.folder / f"scan.{name}"


def hash_of(text: str, seed: int | str) -> int:
    """`unit_hash` of a text times 2^64, which is a whole number."""
    data = f"{seed}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def fill(scan: Scan, found: Findings, emit: Emit) -> None:
    """Read all rows of a scan's files once; what is wrong with them is found.

    Raises:
        UserError: As `read_examples`, at the first row that is wrong.
        NotLarge: The rows have too many different sets of classes, or a value that could not be given back.
    """
    told = time.perf_counter()
    for number, (file, reading) in enumerate(zip(scan.files, scan.readings, strict=True)):
        for offset, item in _placed(Path(file)):
            scan.num_read += 1
            if scan.num_read % 1000 == 0 and time.perf_counter() - told > 1.0:
                told = time.perf_counter()
                emit(Progress(STEP, scan.num_read, 0, "reading", "row"))
            if isinstance(item, RawRow):
                try:
                    scan.add(number, offset, item, reading.example(item))
                    continue
                except RowFault as fault:
                    wrong = Fault(item.origin, fault.code, fault.message, fault.remedy)
            else:
                wrong = item
            if reading.settings.on_fault == "stop":
                raise wrong.error()
            found.add("error", wrong.code, wrong.origin, wrong.message, wrong.remedy)
    scan.flush()


def _placed(path: Path) -> Iterator[tuple[int, RawRow | Fault]]:
    """A file's rows, each with the byte at which it begins; -1 where it cannot be read from there."""
    if is_json_lines(path):
        return placed_rows(path, str(path))
    return ((-1, item) for item in file_rows(path, str(path)))

"""The first reading of a large file: of every usable row its place, hashes of what decides its side, and its classes.

A row takes 42 bytes. The hashes are those of `split.unit_hash`, so they are names and places at once.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.events import Emit, Progress
from tunesmith.core.records import Example
from tunesmith.data.findings import Findings
from tunesmith.data.labels import labels_in
from tunesmith.data.lines import Fault, RawRow
from tunesmith.data.read import example_of
from tunesmith.data.repeats import answer_of, joined_key, normalise, question_of
from tunesmith.data.rows import placed_rows, row_files
from tunesmith.data.stored import Places, StoredExamples
from tunesmith.formats.base import Format, RowFault
from tunesmith.recipe import DataSettings

MAX_LABEL_SETS = 100_000
"""More different sets of classes than this are not told apart by a number."""
STEP = "train"


class NotLarge(Exception):  # noqa: N818 - a way out, not a failure
    """These rows must be held in memory, because a side would be empty or their classes cannot be numbered."""


@dataclass
class Scan:
    """What is known of the usable rows, [N] each; rows are named by their numbers in it."""

    form: Format
    settings: DataSettings
    split_seed: int
    num_read: int = 0
    label_sets: dict[tuple[str, ...], int] = field(default_factory=dict)
    _file_of: array[int] = field(default_factory=lambda: array("H"))
    _offsets: array[int] = field(default_factory=lambda: array("q"))
    _lines: array[int] = field(default_factory=lambda: array("I"))
    _questions: array[int] = field(default_factory=lambda: array("Q"))
    _keys: array[int] = field(default_factory=lambda: array("Q"))
    _others: array[int] = field(default_factory=lambda: array("Q"))
    _label_of: array[int] = field(default_factory=lambda: array("i"))

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def places(self) -> Places:
        """Where the rows begin."""
        return Places(
            tuple(str(path) for path in row_files(str(self.settings.source))),
            np.frombuffer(self._file_of, np.uint16),
            np.frombuffer(self._offsets, np.int64),
            np.frombuffer(self._lines, np.uint32),
        )

    @property
    def questions(self) -> NDArray[np.uint64]:
        """`unit_hash` of each row's question times 2^64."""
        return np.frombuffer(self._questions, np.uint64)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """`unit_hash` of each whole row times 2^64."""
        return np.frombuffer(self._keys, np.uint64)

    @property
    def others(self) -> NDArray[np.uint64]:
        """Another hash of each whole row: two rows are the same where both hashes are."""
        return np.frombuffer(self._others, np.uint64)

    @property
    def label_of(self) -> NDArray[np.int32]:
        """The number of each row's set of classes."""
        return np.frombuffer(self._label_of, np.int32)

    def examples(self, rows: NDArray[Any]) -> StoredExamples:
        """Some rows as examples, read when they are asked for."""
        return StoredExamples(self.places.some(rows), self.form, self.settings)

    def add(self, file: int, offset: int, example: Example) -> None:
        """Note a row."""
        question = normalise(question_of(example))
        key = joined_key(question, normalise(answer_of(example)))
        self._file_of.append(file)
        self._offsets.append(offset)
        self._lines.append(example.origin.line)
        self._questions.append(hash_of(question, self.split_seed))
        self._keys.append(hash_of(key, self.split_seed))
        self._others.append(hash_of(key, "another"))
        self._label_of.append(self.label_sets.setdefault(labels_in(example), len(self.label_sets)))
        if len(self.label_sets) > MAX_LABEL_SETS:
            raise NotLarge


def hash_of(text: str, seed: int | str) -> int:
    """`unit_hash` of a text times 2^64, which is a whole number."""
    data = f"{seed}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def scan(settings: DataSettings, form: Format, split_seed: int, found: Findings, emit: Emit) -> Scan:
    """All rows of the settings' source, read once; what is wrong with them is found.

    Raises:
        UserError: As `read_examples`, at the first row that is wrong.
        NotLarge: The rows have too many different sets of classes.
    """
    done, told = Scan(form, settings, split_seed), time.perf_counter()
    for number, path in enumerate(row_files(str(settings.source))):
        for offset, item in placed_rows(path, str(path)):
            done.num_read += 1
            if done.num_read % 1000 == 0 and time.perf_counter() - told > 1.0:
                told = time.perf_counter()
                emit(Progress(STEP, done.num_read, 0, "reading", "row"))
            if isinstance(item, RawRow):
                try:
                    done.add(number, offset, example_of(item, form, settings))
                    continue
                except RowFault as fault:
                    wrong = Fault(item.origin, fault.code, fault.message, fault.remedy)
            else:
                wrong = item
            if settings.on_fault == "stop":
                raise wrong.error()
            found.add("error", wrong.code, wrong.origin, wrong.message, wrong.remedy)
    return done

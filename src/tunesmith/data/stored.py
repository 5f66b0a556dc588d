"""Training rows that stay on disk: a row is read and made into an example when it is asked for.

What is kept of a row is where it begins: 2 bytes for its file, 8 for the byte and 4 for the line, mapped from disk.
Rows of JSON Lines are read from their own file, others from a spool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, overload

from numpy.typing import NDArray

from tunesmith.core.errors import UserError
from tunesmith.core.records import Example, Origin
from tunesmith.data.json_text import JsonFault
from tunesmith.data.lines import MAX_LINE_BYTES, Fault, RawRow
from tunesmith.data.read import example_of
from tunesmith.data.rows import is_json_lines, row_of_text
from tunesmith.data.spool import spooled_row
from tunesmith.formats.base import Format, RowFault
from tunesmith.recipe import DataSettings

BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class Reading:
    """How a source's rows become examples."""

    form: Format
    settings: DataSettings
    """The settings as they are for this source."""
    source_name: str = ""
    """Its name, where there are several sources."""

    def example(self, row: RawRow) -> Example:
        """The row as an example.

        Raises:
            RowFault: As `Format.read`.
        """
        example = example_of(row, self.form, self.settings)
        return replace(example, source_name=self.source_name) if self.source_name else example


@dataclass(frozen=True, eq=False)
class Places:
    """Where rows begin: the file's number, the byte and the line, each [N]."""

    file_of: NDArray[Any]
    offsets: NDArray[Any]
    lines: NDArray[Any]

    def __len__(self) -> int:
        return len(self.offsets)


class StoredExamples(Sequence[Example]):
    """The examples of rows on disk; equal rows give equal examples as often as they are asked for.

    `files` are the names of the user's files and `readings` says for each how its rows are read. `spool` has the rows
    of those that are not JSON Lines; it stays open, so it may be deleted.
    """

    def __init__(
        self,
        places: Places,
        files: Sequence[str],
        readings: Sequence[Reading],
        spool: Path,
        *,
        identity: str = "",
        sha256: str = "",
        label_counts: Mapping[str, int] | None = None,
    ) -> None:
        self._places, self._files, self._readings = places, files, readings
        self._is_spooled = [not is_json_lines(Path(file)) for file in files]
        self._file: tuple[int, BinaryIO] | None = None
        self._spool: BinaryIO | None = None
        if any(self._is_spooled):
            self._spool = spool.open("rb", buffering=BUFFER_BYTES)
        self.format_name = readings[0].form.name
        """The format of the first source."""
        self.identity = identity
        """What decides the rows and their order, as one word."""
        self.sha256 = sha256
        """Of the examples' canonical rows, as `contents_sha256`."""
        self.label_counts = label_counts or {}
        """How many rows have each class."""

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Example]:
        return (self[row] for row in range(len(self)))

    @overload
    def __getitem__(self, row: int) -> Example: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, row: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(row, slice):
            return tuple(self[number] for number in range(*row.indices(len(self))))
        place = row + len(self) if row < 0 else row
        if not 0 <= place < len(self):
            raise IndexError(row)
        number, offset = int(self._places.file_of[place]), int(self._places.offsets[place])
        origin = Origin(self._files[number], int(self._places.lines[place]))
        if self._is_spooled[number]:
            assert self._spool is not None
            self._spool.seek(offset)
            return self._readings[number].example(RawRow(spooled_row(self._spool.readline()), origin))
        file = self._opened(number)
        file.seek(offset)
        line = file.readline(MAX_LINE_BYTES + 1)
        try:
            item = row_of_text(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8"), origin)
            if isinstance(item, Fault):
                raise _changed(origin)
            return self._readings[number].example(item)
        except (UnicodeDecodeError, JsonFault, RowFault):
            raise _changed(origin) from None

    def _opened(self, number: int) -> BinaryIO:
        if self._file is None or self._file[0] != number:
            if self._file is not None:
                self._file[1].close()
            path = Path(self._files[number])
            try:
                self._file = (number, path.open("rb", buffering=BUFFER_BYTES))
            except OSError:
                raise _changed(Origin(str(path), 1)) from None
        return self._file[1]

    def __del__(self) -> None:
        if self._file is not None:
            self._file[1].close()
        if self._spool is not None:
            self._spool.close()


def _changed(origin: Origin) -> UserError:
    return UserError(
        "this row is no longer what it was when the file was first read.",
        code="file_changed",
        where=str(origin),
        remedy="Start again, and leave the file alone while it is in use.",
    )

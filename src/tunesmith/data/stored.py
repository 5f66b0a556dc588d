"""Training rows that stay in their file: a row is read and made into an example when it is asked for.

What is kept of a row is where it begins: 8 bytes for its place, 8 for its line and 4 for its file, mapped from disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, overload

from numpy.typing import NDArray

from tunesmith.core.errors import UserError
from tunesmith.core.records import Example, Origin
from tunesmith.data.json_text import JsonFault
from tunesmith.data.lines import MAX_LINE_BYTES, Fault
from tunesmith.data.read import example_of
from tunesmith.data.rows import row_of_text
from tunesmith.formats.base import Format, RowFault
from tunesmith.recipe import DataSettings

_BUFFER_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class Places:
    """Where rows begin: the file's number, the byte and the line, each [N]."""

    files: tuple[str, ...]
    file_of: NDArray[Any]
    offsets: NDArray[Any]
    lines: NDArray[Any]

    def __len__(self) -> int:
        return len(self.offsets)

    def origin(self, row: int) -> Origin:
        """Where a row came from, for messages."""
        return Origin(self.files[int(self.file_of[row])], int(self.lines[row]))

    def some(self, rows: NDArray[Any]) -> Places:
        """Those of some rows, in their order."""
        return Places(self.files, self.file_of[rows], self.offsets[rows], self.lines[rows])


class StoredExamples(Sequence[Example]):
    """The examples of rows of JSON Lines files; equal rows give equal examples as often as they are asked for."""

    def __init__(
        self,
        places: Places,
        form: Format,
        settings: DataSettings,
        *,
        identity: str = "",
        sha256: str = "",
        label_counts: Mapping[str, int] | None = None,
    ) -> None:
        self._places, self._format, self._settings = places, form, settings
        self._file: tuple[int, BinaryIO] | None = None
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
        origin = self._places.origin(place)
        file = self._opened(int(self._places.file_of[place]))
        file.seek(int(self._places.offsets[place]))
        line = file.readline(MAX_LINE_BYTES + 1)
        try:
            item = row_of_text(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8"), origin)
            if isinstance(item, Fault):
                raise _changed(origin)
            return example_of(item, self._format, self._settings)
        except (UnicodeDecodeError, JsonFault, RowFault):
            raise _changed(origin) from None

    def _opened(self, number: int) -> BinaryIO:
        if self._file is None or self._file[0] != number:
            if self._file is not None:
                self._file[1].close()
            path = Path(self._places.files[number])
            try:
                self._file = (number, path.open("rb", buffering=_BUFFER_BYTES))
            except OSError:
                raise _changed(Origin(str(path), 1)) from None
        return self._file[1]

    def __del__(self) -> None:
        if self._file is not None:
            self._file[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def _changed(origin: Origin) -> UserError:
    return UserError(
        "this row is no longer what it was when the file was first read.",
        code="file_changed",
        where=str(origin),
        remedy="Start again, and leave the file alone while it is in use.",
    )

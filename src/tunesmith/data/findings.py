"""Collect what is wrong with rows: one finding per kind with its first place, and every place for scripts.

A place takes 12 bytes, so that millions of repeated rows can be counted.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.events import Finding
from tunesmith.core.records import Origin

Level = Literal["error", "warning"]


@dataclass
class _Places:
    """Rows of one kind: each one's file, by number, and line."""

    files: array[int] = field(default_factory=lambda: array("i"))
    lines: array[int] = field(default_factory=lambda: array("q"))

    def distinct(self) -> NDArray[np.int64]:
        """Which of the places are the first of theirs, in order."""
        both = np.asarray(self.files, dtype=np.int64) << 40 | np.asarray(self.lines, dtype=np.int64)
        return np.sort(np.unique(both, return_index=True)[1])


@dataclass
class Findings:
    """Findings in the making; the first row of each kind gives the words."""

    _first: dict[str, Finding] = field(default_factory=dict)
    _places: dict[str, _Places] = field(default_factory=dict)
    _files: dict[str, int] = field(default_factory=dict)

    def add(self, level: Level, code: str, origin: Origin, message: str, remedy: str) -> None:
        """Note one row; `code` is the kind."""
        if code not in self._first:
            self._first[code] = Finding(level, code, str(origin), message, remedy)
        self.again(code, origin)

    def again(self, code: str, origin: Origin) -> None:
        """Note one more row of a kind that was found before."""
        places = self._places.setdefault(code, _Places())
        places.files.append(self._files.setdefault(origin.file, len(self._files)))
        places.lines.append(origin.line)

    def update(self, other: Findings) -> None:
        """Take over another collection's rows."""
        for code, first in other._first.items():
            self._first.setdefault(code, first)
            for origin in other._origins(code):
                self.again(code, origin)

    def all(self) -> tuple[Finding, ...]:
        """One finding per kind, errors first, then by number of rows."""
        found = [
            Finding(first.level, code, first.where, first.message, first.remedy, self.count(code))
            for code, first in self._first.items()
        ]
        return tuple(sorted(found, key=lambda finding: (finding.level != "error", -finding.num_rows, finding.code)))

    def count(self, code: str) -> int:
        """How many rows have this fault (one row counts once)."""
        return len(self._places[code].distinct()) if code in self._places else 0

    def places(self, code: str) -> tuple[Origin, ...]:
        """Where: every row of a kind, in order."""
        return tuple(dict.fromkeys(self._origins(code)))

    def _origins(self, code: str) -> list[Origin]:
        names, places = list(self._files), self._places.get(code, _Places())
        return [Origin(names[file], line) for file, line in zip(places.files, places.lines, strict=True)]

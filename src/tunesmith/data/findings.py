"""Collect what is wrong with rows: one finding per kind with its first place, and every place for scripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tunesmith.core.events import Finding
from tunesmith.core.records import Origin

Level = Literal["error", "warning"]


@dataclass
class Findings:
    """Findings in the making; the first row of each kind gives the words."""

    _first: dict[str, Finding] = field(default_factory=dict)
    _places: dict[str, list[Origin]] = field(default_factory=dict)

    def add(self, level: Level, code: str, origin: Origin, message: str, remedy: str) -> None:
        """Note one row; `code` is the kind."""
        places = self._places.setdefault(code, [])
        if not places:
            self._first[code] = Finding(level, code, str(origin), message, remedy)
        places.append(origin)

    def update(self, other: Findings) -> None:
        """Take over another collection's rows."""
        for code, places in other._places.items():
            self._first.setdefault(code, other._first[code])
            self._places.setdefault(code, []).extend(places)

    def all(self) -> tuple[Finding, ...]:
        """One finding per kind, errors first, then by number of rows."""
        found = [
            Finding(first.level, code, first.where, first.message, first.remedy, self.count(code))
            for code, first in self._first.items()
        ]
        return tuple(sorted(found, key=lambda finding: (finding.level != "error", -finding.num_rows, finding.code)))

    def count(self, code: str) -> int:
        """How many rows have this fault (one row counts once)."""
        return len(set(self._places.get(code, ())))

    def places(self, code: str) -> tuple[Origin, ...]:
        """Where: every row of a kind, in order."""
        return tuple(dict.fromkeys(self._places.get(code, ())))

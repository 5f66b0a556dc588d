"""What went wrong, said so that a stranger can mend it.

A `UserError` is anything the user can fix; everything else that escapes is a bug in Tunesmith.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any


class TunesmithError(Exception):
    """The root of Tunesmith's errors."""


class UserError(TunesmithError):
    """Something the user can fix: what is wrong, where, and what to do.

    `message` stands alone; `where` is a place such as `recipe.yaml:7`; `remedy` is an imperative
    sentence or a command; `code` is stable and machine-readable; `frame` shows at most four lines.
    """

    def __init__(
        self, message: str, *, code: str = "invalid", where: str = "", remedy: str = "", frame: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.where = where
        self.remedy = remedy
        self.frame = frame

    def line(self) -> str:
        """The error as one line: where, what, what to do, code."""
        place = f"{self.where}: " if self.where else ""
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{place}{self.message}{remedy} [{self.code}]"

    def to_dict(self) -> dict[str, Any]:
        """The error as the HTTP API and `--json` give it."""
        return {"code": self.code, "message": self.message, "where": self.where, "remedy": self.remedy}


class GateError(UserError):
    """A version was not promoted; `gates` holds every gate with its numbers."""

    def __init__(self, message: str, *, gates: tuple[Any, ...], remedy: str = "") -> None:
        super().__init__(message, code="gate.failed", remedy=remedy)
        self.gates = gates

    def to_dict(self) -> dict[str, Any]:
        """The error with its gates."""
        return {**super().to_dict(), "gates": [gate.to_dict() for gate in self.gates]}


class Interrupted(TunesmithError):  # noqa: N818 - it is not a fault
    """The user stopped the work; what was saved can be continued with `resume`."""

    def __init__(self, message: str, *, resume: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.resume = resume


@dataclass(frozen=True)
class Suggestions:
    """Names close to a wrong one: from the same place, and from other places."""

    here: tuple[str, ...]
    elsewhere: tuple[tuple[str, str], ...]
    """Pairs (name, the place it belongs to)."""

    def sentence(self) -> str:
        """`did you mean "epochs"?`, or where the name belongs, or nothing."""
        if self.here:
            return "did you mean " + " or ".join(f'"{name}"' for name in self.here) + "?"
        if self.elsewhere:
            name, place = self.elsewhere[0]
            return f'"{name}" is a setting of `{place}`.'
        return ""


def suggest(wrong: str, known: Iterable[str], elsewhere: Mapping[str, Iterable[str]] | None = None) -> Suggestions:
    """Up to three known names that differ by two edits or share a prefix, nearest first."""
    here = sorted((name for name in known if _is_close(wrong, name)), key=lambda name: _distance(wrong, name))
    other = [
        (name, place)
        for place, names in (elsewhere or {}).items()
        for name in names
        if name == wrong or (not here and edit_distance(wrong, name) <= 1)
    ]
    return Suggestions(tuple(here[:3]), tuple(other[:3]))


def unknown_name(kind: str, wrong: str, known: Iterable[str], *, where: str = "", listing: str = "") -> UserError:
    """The error for a name that does not exist, with the nearest that do."""
    names = sorted(known)
    hint = suggest(wrong, names).sentence()
    remedy = hint or ("Known: " + ", ".join(names) + "." if names else "")
    if listing:
        remedy = f"{remedy} All: {listing}".strip()
    return UserError(
        f'there is no {kind} "{wrong}";', code=f"unknown_{kind.replace(' ', '_')}", where=where, remedy=remedy
    )


def edit_distance(a: str, b: str) -> int:
    """Damerau-Levenshtein distance (optimal string alignment) between two names, ignoring case."""
    a, b = a.lower(), b.lower()
    rows = [list(range(len(b) + 1))]
    for i, char_a in enumerate(a, 1):
        row = [i]
        for j, char_b in enumerate(b, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (char_a != char_b)))
            if i > 1 and j > 1 and char_a == b[j - 2] and a[i - 2] == char_b:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def _is_close(wrong: str, name: str) -> bool:
    if not wrong:
        return False
    shares_prefix = len(wrong) >= 3 and (
        name.lower().startswith(wrong.lower()) or wrong.lower().startswith(name.lower())
    )
    return shares_prefix or edit_distance(wrong, name) <= min(2, max(1, len(wrong) // 2))


def _distance(wrong: str, name: str) -> tuple[int, float]:
    return edit_distance(wrong, name), -SequenceMatcher(None, wrong, name).ratio()

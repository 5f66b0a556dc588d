"""What the steps on data hand back: records, and their keys in `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.core.events import Finding
from tunesmith.data.learnt import Learnt, Piece


@dataclass(frozen=True)
class Lengths:
    """Tokens per row."""

    p5: int
    median: int
    p95: int
    longest: int
    histogram: tuple[int, ...]
    """Rows per twelfth of the longest."""
    num_measured: int


@dataclass(frozen=True)
class CheckReport:
    """What a check found."""

    path: str
    num_rows: int
    num_bytes: int
    format_name: str
    description: str
    model: str
    max_length: int
    findings: tuple[Finding, ...]
    places: Mapping[str, tuple[str, ...]]
    """Every place of each finding by its code, at most a thousand."""
    num_usable: int
    lengths: Lengths | None
    num_tokens: int
    num_trained: int
    num_with_end: int
    preview: tuple[Piece, ...]
    preview_origin: str
    repaired: str
    num_repaired: int
    seconds: float
    next: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report with the keys of `--json`."""
        return {
            "path": self.path,
            "rows": self.num_rows,
            "usable_rows": self.num_usable,
            "bytes": self.num_bytes,
            "format": self.format_name,
            "model": self.model,
            "max_length": self.max_length,
            "errors": sum(f.num_rows for f in self.findings if f.level == "error"),
            "warnings": sum(f.num_rows for f in self.findings if f.level == "warning"),
            "findings": [
                {
                    "level": f.level,
                    "code": f.code,
                    "where": f.where,
                    "message": f.message,
                    "remedy": f.remedy,
                    "rows": f.num_rows,
                    "places": list(self.places[f.code]),
                }
                for f in self.findings
            ],
            "tokens": {
                "total": self.num_tokens,
                "trained": self.num_trained,
                "rows_with_end": self.num_with_end,
                **({k: getattr(self.lengths, k) for k in ("p5", "median", "p95", "longest")} if self.lengths else {}),
                "rows_measured": self.lengths.num_measured if self.lengths else 0,
            },
            "preview": [{"text": piece.text, "part": piece.part} for piece in self.preview],
            "repaired": self.repaired,
            "repaired_rows": self.num_repaired,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class ShownRow:
    """One row: how it was read, and what is learnt of it."""

    origin: str
    kind: str
    columns: Mapping[str, Any]
    """The row as its file has it."""
    fields: tuple[str, ...]
    """Columns the format did not use."""
    learnt: Learnt | None
    fault: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The row with the keys of `--json`."""
        out: dict[str, Any] = {"where": self.origin, "kind": self.kind, "row": dict(self.columns)}
        if self.learnt is None:
            return {**out, "fault": self.fault}
        return {
            **out,
            "unused_columns": list(self.fields),
            "tokens": self.learnt.num_tokens,
            "trained_tokens": self.learnt.num_trained,
            "cut_tokens": self.learnt.num_cut,
            "pieces": [{"text": piece.text, "part": piece.part} for piece in self.learnt.pieces],
        }


@dataclass(frozen=True)
class ShowReport:
    """Rows as they are read and trained."""

    path: str
    format_name: str
    description: str
    model: str
    max_length: int
    rows: tuple[ShownRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report with the keys of `--json`."""
        return {
            "path": self.path,
            "format": self.format_name,
            "model": self.model,
            "max_length": self.max_length,
            "rows": [row.to_dict() for row in self.rows],
        }


@dataclass(frozen=True)
class Prepared:
    """A published data set."""

    path: Path
    card: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The data card and where it lies."""
        return {"path": str(self.path), **self.card}

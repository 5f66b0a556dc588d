"""Rows of one path as examples: read, renamed, recognised, with everything that is wrong with them.

The format is recognised from the first rows: each format says how well a row fits it, and the best fit reads them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UserError, suggest
from tunesmith.core.events import Finding
from tunesmith.core.plugins import build, names
from tunesmith.core.publish import sha256
from tunesmith.core.records import ChatExample, Example, Message, PreferenceExample, RatedExample
from tunesmith.data.findings import Findings
from tunesmith.data.lines import Fault
from tunesmith.data.rows import RawRow, read_rows, row_files
from tunesmith.formats.base import Format, RowFault
from tunesmith.recipe import DataSettings

SAMPLE_ROWS = 50
"""Rows that recognition looks at."""


@dataclass(frozen=True)
class Loaded:
    """The rows of one path as examples; `details` has every place of every finding."""

    examples: tuple[Example, ...]
    findings: tuple[Finding, ...]
    format_name: str
    num_read: int = 0
    """Rows in the file, unusable ones included."""
    num_faults: int = 0
    details: Findings = field(default_factory=Findings, repr=False, compare=False)


@dataclass(frozen=True)
class SourceFile:
    """A file that rows came from."""

    name: str
    num_bytes: int
    sha256: str


def read_examples(path: str | Path, settings: DataSettings) -> Loaded:
    """The rows of a path as examples, by `settings`' format, columns, system message and way with faults.

    Raises:
        UserError: As `read_rows`; no format fits; with `on_fault: stop`, the first row that cannot be read.
    """
    items = list(read_rows(path, on_fault=settings.on_fault))
    found = Findings()
    rows = [item for item in items if isinstance(item, RawRow)]
    check_columns(rows, settings.columns, str(path))
    for item in items:
        if isinstance(item, Fault):
            found.add("error", item.code, item.origin, item.message, item.remedy)
    chosen = settings.format
    if rows and not isinstance(chosen, Format):
        chosen = recognise_rows(rows[:SAMPLE_ROWS], settings, where=str(path))
    examples = []
    for row in rows:
        assert isinstance(chosen, Format), chosen
        try:
            examples.append(example_of(row, chosen, settings))
        except RowFault as fault:
            wrong = Fault(row.origin, fault.code, fault.message, fault.remedy)
            if settings.on_fault == "stop":
                raise wrong.error() from None
            found.add("error", wrong.code, wrong.origin, wrong.message, wrong.remedy)
    name = chosen.name if isinstance(chosen, Format) else ""
    return Loaded(tuple(examples), found.all(), name, len(items), len(items) - len(examples), found)


def recognise_rows(rows: Sequence[RawRow], settings: DataSettings, *, where: str = "") -> Format:
    """The format that fits the first rows of a file best, under the names that `data.columns` gives them.

    Raises:
        UserError: As `recognise`.
    """
    return recognise([_renamed(row, settings.columns) for row in rows], where=where)


def example_of(row: RawRow, form: Format, settings: DataSettings) -> Example:
    """A row as an example, under the settings' columns and system message.

    Raises:
        RowFault: As `Format.read`.
    """
    return _with_system(form.read(_renamed(row, settings.columns), row.origin), settings.system)


def recognise(rows: Sequence[Mapping[str, Any]], *, where: str = "") -> Format:
    """The format that fits the rows best, on average; of equals the first by name.

    Raises:
        UserError: None fits; the columns are listed with the way to name them.
    """
    best, best_score = None, 0.0
    for name in names("formats"):
        candidate: Format = build("formats", name)
        score = sum(candidate.matches(row) for row in rows) / len(rows)
        if score > best_score:
            best, best_score = candidate, score
    if best is not None and best_score >= 0.15:
        return best
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = ", ".join(f'"{name}"' for name in columns[:12]) + (", …" if len(columns) > 12 else "")
    first, second = [*columns, "question", "answer"][:2]
    raise UserError(
        f"the columns {shown or '(none)'} fit no format that Tunesmith knows.",
        code="unknown_format",
        where=where,
        remedy=f"Say what they are, e.g. data.columns={{{first}: prompt, {second}: completion}}; "
        "all shapes: tunesmith plugins formats",
    )


def source_files(path: str | Path) -> tuple[SourceFile, ...]:
    """The files behind a path with their sizes and sums; names are relative, so that a card can be shared."""
    root = Path(path)
    return tuple(
        SourceFile(file.relative_to(root).as_posix() if root.is_dir() else file.name, file.stat().st_size, sha256(file))
        for file in row_files(path)
    )


def check_columns(rows: Sequence[RawRow], columns: Mapping[str, str], where: str) -> None:
    """Refuse names of columns that the rows do not have, or that two of them would have.

    Raises:
        UserError: Either of these.
    """
    known = list(dict.fromkeys(name for row in rows[:SAMPLE_ROWS] for name in row.values))
    for name, new in columns.items():
        if rows and name not in known and not any(name in row.values for row in rows):
            hint = suggest(name, known).sentence() or f"there are: {', '.join(known[:12])}."
            raise UserError(
                f'there is no column "{name}" (named in `data.columns`);',
                code="unknown_column",
                where=where,
                remedy=hint,
            )
        if new in known and new not in columns and new != name:
            raise UserError(
                f'`data.columns` makes "{name}" to "{new}", but there is a column "{new}" already.',
                code="column_taken",
                where=where,
                remedy=f"Rename that one too, e.g. {{{new}: old_{new}}}.",
            )


def _renamed(row: RawRow, columns: Mapping[str, str]) -> Mapping[str, Any]:
    if not columns:
        return row.values
    return {columns.get(name, name): value for name, value in row.values.items()}


def _with_system(example: Example, text: str) -> Example:
    if not text:
        return example
    system = Message("system", text)
    if isinstance(example, ChatExample) and not any(m.role == "system" for m in example.messages):
        return replace(example, messages=(system, *example.messages))
    if isinstance(example, PreferenceExample | RatedExample) and not any(m.role == "system" for m in example.prompt):
        return replace(example, prompt=(system, *example.prompt))
    return example

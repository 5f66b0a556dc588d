"""What steps say while they work: small frozen records. Reporters draw them; steps know no terminal.

Every step takes `emit: Emit`. Quantities carry their unit in the name; `values` has the names of metrics.jsonl.
A score with an interval is three values: `fact_match`, `fact_match_low`, `fact_match_high`.
Steps nest (compare starts train): reporters show the outermost in full and the inner ones in short.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Started:
    """A step begins. `lines` are the facts shown at its head: (label, text)."""

    step: str
    title: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)
    lines: tuple[tuple[str, str], ...] = ()
    at: int | None = None
    """Its place among the parts of the step around it (`of`), from 1: the 3/9 of a demo."""
    of: int | None = None
    on_interrupt: str = ""
    """What Ctrl-C does: `finishes this step and saves; resume with: tunesmith train --resume runs/x-1`."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step is; `label` names the part being done. `total` 0 means unknown."""

    step: str
    done: int
    total: int
    label: str = ""
    unit: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metric:
    """Numbers at a point of the work: a validation, a score, a row of a comparison (`label` names it)."""

    step: str
    values: Mapping[str, Value]
    at: int | None = None
    of: int | None = None
    is_best: bool = False
    label: str = ""
    seconds: float | None = None
    text: str = ""
    """What a row shows instead of its first score."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model answers now to a fixed question."""

    step: str
    prompt: str
    answer: str
    reference: str = ""
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of fault in the data, first place named."""

    level: Literal["error", "warning"]
    code: str
    where: str
    message: str
    remedy: str = ""
    num_rows: int = 1


@dataclass(frozen=True, slots=True)
class Warning:
    """Something the user should know; the work goes on."""

    step: str
    code: str
    message: str
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Saved:
    """Something is safely on disk."""

    step: str
    path: str
    what: str = ""
    num_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A step ended well. `text` is its closing sentence, `next` at most two commands that work as printed."""

    step: str
    text: str = ""
    seconds: float = 0.0
    values: Mapping[str, Value] = field(default_factory=dict)
    next: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    """A closing table as text, titles first: before and after."""


Event = Started | Progress | Metric | Sample | Finding | Warning | Saved | Finished
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """An `Emit` that says nothing."""

"""What a terminal says about a stream of events: lines that scroll, and lines that stay at the bottom.

Pure text with styles; `live` draws it with rich, `notebook` uses it as the plain twin. The outermost step is told
in full, numbered parts (`at`/`of`) in one line each, and anything deeper only as the bar of what it is part of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tunesmith.core.events import Event, Finding, Finished, Metric, Progress, Sample, Saved, Started, Value, Warning
from tunesmith.reporters.quiet import finding_line
from tunesmith.reporters.rows import TrainingTable, score_text
from tunesmith.reporters.text import (
    Column,
    cell_width,
    count,
    duration,
    facts,
    fold,
    is_flat,
    number,
    pad,
    paint,
    progress_bar,
    shorten,
    sparkline,
    spoken,
    table,
)

WIDEST = 100
"""Lines longer than this are hard to read; what is pushed to the right edge stops here."""
MAX_POINTS = 512
EDGE = 9
"""Where texts begin after their labels."""


@dataclass
class Frame:
    """A step that has begun and not ended."""

    started: Started
    progress: Progress | None = None
    first: Progress | None = None
    since: float = 0.0
    has_rows: bool = False
    losses: list[float] = field(default_factory=list)
    best: Metric | None = None
    tokens_per_second: Value = None
    is_implicit: bool = False
    """Made by a progress that came before its `Started`."""

    @property
    def part(self) -> str:
        """`3/9 compare`, or nothing for a step that is not numbered."""
        return f"{self.started.at}/{self.started.of} {self.started.step}" if self.started.of else ""


class Story:
    """Turns events into lines; `width` is asked each time, because windows change."""

    def __init__(self, width: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._width = width
        self._clock = clock
        self._frames: list[Frame] = []
        self._training: TrainingTable | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no step is at work."""
        return not self._frames

    @property
    def depth(self) -> int:
        """How many steps are at work, one inside the other."""
        return sum(not frame.is_implicit for frame in self._frames)

    def tell(self, event: Event) -> list[str]:
        """The lines that scroll because of this event."""
        width = min(WIDEST, self._width())
        lines = self._flush(event, width)
        match event:
            case Started():
                lines += self._started(event, width)
            case Progress():
                self._progress(event)
            case Metric():
                lines += self._metric(event, width)
            case Sample():
                if self._training and len(self._frames) <= 1:
                    lines += self._training.sample(event, width)
            case Finding():
                lines.append(fold(finding_line(event), width, 2))
            case Warning():
                lines.append(paint("!", "yellow") + " " + fold(event.message, width - 2, 2))
            case Saved():
                if len(self._frames) <= 1 and event.what and not event.what.startswith("checkpoint"):
                    lines += self._facts([(event.what, paint(event.path, "cyan"))], width)
            case Finished():
                lines += self._finished(event, width)
        return lines

    def bottom(self) -> list[str]:
        """The lines that stay: the bar, the loss, and what Ctrl-C does."""
        width = min(WIDEST, self._width())
        working = next((frame for frame in reversed(self._frames) if frame.progress), None)
        if working is None or working.progress is None:
            return []
        outer = self._frames[0]
        has_room = len(self._frames) == 1 and not is_flat(width)
        lines = [*([""] if has_room and outer.losses else []), self._bar(working, width)]
        if has_room and outer.losses:
            lines.append(self._loss(outer, width))
        if outer.started.on_interrupt:
            text = outer.started.on_interrupt
            lines.append(pad("Ctrl-C", EDGE) + _first_clause(text, width - EDGE))
        return lines

    # --- events ----------------------------------------------------------------------------------

    def _started(self, event: Started, width: int) -> list[str]:
        lines = []
        if self._frames and self._frames[-1].is_implicit:
            self._frames.pop()
        if not self._frames:
            self._training = None
            if event.title:
                lines.append(fold(event.title, width))
            lines += self._facts(event.lines, width)
            if lines:
                lines.append("")
        self._frames.append(Frame(event, since=self._clock()))
        return lines

    def _progress(self, event: Progress) -> None:
        frame = self._frame(event.step)
        if frame is None:
            frame = Frame(Started(event.step), since=self._clock(), is_implicit=True)
            self._frames.append(frame)
        before = frame.progress
        if before is None or event.done < before.done or event.label != before.label:
            frame.first, frame.since = event, self._clock()
        frame.progress = event
        loss = event.values.get("train_loss", event.values.get("loss"))
        if isinstance(loss, int | float):
            frame.losses.append(float(loss))
            if len(frame.losses) > MAX_POINTS:
                frame.losses = [(a + b) / 2 for a, b in zip(frame.losses[::2], frame.losses[1::2], strict=False)]
        frame.tokens_per_second = event.values.get("tokens_per_second", frame.tokens_per_second)

    def _metric(self, event: Metric, width: int) -> list[str]:
        frame = self._frame(event.step)
        if frame is not None and event.is_best:
            frame.best = event
        is_inner = len(self._frames) > 1 and not (frame and frame.part)
        if is_inner:
            return []
        if event.label:
            text = event.text or score_text(event.values, width)
            return [self._row(event.label, text, event.seconds, frame, width)]
        if event.at is None or (frame and frame.part):
            return []
        if self._training is None:
            self._training = TrainingTable()
        self._training.add(event)
        return []

    def _finished(self, event: Finished, width: int) -> list[str]:
        frame = self._frame(event.step)
        if frame is not None:
            del self._frames[self._frames.index(frame) :]
        if self._frames:
            if frame is None or not frame.part or frame.has_rows:
                return []
            return [self._row("", event.text, event.seconds, frame, width)]
        text = event.text or (duration(event.seconds) if event.seconds else "")
        lines = ["", *self._facts([(paint("done", "green"), text)], width)] if text else []
        if event.table:
            lines += ["", _closing_table(event.table, width)]
        if event.next:
            lines += [
                "",
                *self._facts([("next" if not i else "", paint(c, "cyan")) for i, c in enumerate(event.next)], width),
            ]
        return [*lines, ""] if lines else []

    def _flush(self, event: Event, width: int) -> list[str]:
        if self._training is None or isinstance(event, Sample) or len(self._frames) > 1:
            return []
        return self._training.flush(width)

    # --- lines -----------------------------------------------------------------------------------

    def _row(self, label: str, text: str, seconds: float | None, frame: Frame | None, width: int) -> str:
        is_first = frame is not None and not frame.has_rows
        part = frame.part if frame is not None else ""
        if frame is not None:
            frame.has_rows = True
        if is_flat(width):
            words = (part if is_first else "", label, text, _short(seconds) if seconds is not None else "")
            return fold(spoken(": ".join(word for word in words if word)), width, 2)
        head = paint(pad(part, 15), "bold") if part and is_first else " " * 15 if part else ""
        tail = f"   {paint('✓', 'green')}{_short(seconds):>11}" if seconds is not None else ""
        label = pad(label, 18 if width >= 90 else 16) if label else ""
        room = width - 2 - cell_width(head + label + tail)
        return head + label + pad(shorten(text, room), room if tail else 0) + tail

    def _bar(self, frame: Frame, width: int) -> str:
        assert frame.progress is not None
        numbered = next((f for f in self._frames if f.part), None)
        label = next((f.progress.label for f in self._frames if f.progress and f.progress.label), frame.started.step)
        done, total = frame.progress.done, frame.progress.total
        percent = f"{100 * done // total:>3} %" if total else ""
        left = self._left(frame)
        if is_flat(width):
            return shorten(f"{label}: {done} of {total}{', left ' + left if left else ''}", width)
        head = pad("" if numbered.has_rows else numbered.part, 15) if numbered else ""
        label = (
            pad(shorten(label, 18), 18 if width >= 90 else 16)
            if numbered or len(self._frames) > 1
            else pad(label, EDGE)
        )
        place = f"  {count(done)}/{count(total) if total else '?'}" if len(self._frames) == 1 else ""
        tail = f"{place}  {percent:>5}  {pad('left ' + left if left else '', 16)}"
        room = max(8, width - 2 - cell_width(head + label + tail))
        bar = progress_bar(done, total, room)
        filled = bar.rstrip("─")
        return head + label + paint(filled, "green") + paint(bar[len(filled) :], "dim") + tail.rstrip()

    def _left(self, frame: Frame) -> str:
        progress, first = frame.progress, frame.first
        if progress is None or first is None or not progress.total:
            return ""
        given = progress.values.get("left_seconds")
        if isinstance(given, int | float):
            return duration(given)
        advance, spent = progress.done - first.done, self._clock() - frame.since
        return duration(spent / advance * (progress.total - progress.done)) if advance > 0 and spent > 1 else ""

    def _loss(self, frame: Frame, width: int) -> str:
        notes = []
        if frame.best is not None and isinstance(value := frame.best.values.get("validation_loss"), int | float):
            notes.append(f"best {number(value)}" + (f" at {count(frame.best.at)}" if frame.best.at else ""))
        if isinstance(frame.tokens_per_second, int | float):
            notes.append(f"{count(round(frame.tokens_per_second))} tokens/s")
        tail = " · ".join(notes)
        head = pad("loss", EDGE) + paint(pad(number(frame.losses[-1]), 7), "bold")
        room = width - 2 - cell_width(head + tail) - 2
        spark = sparkline(frame.losses, min(28, room)) if room >= 8 else ""
        return f"{head}{spark}{' ' * max(2, room + 2 - len(spark))}{tail}".rstrip()

    @staticmethod
    def _facts(lines: Iterable[tuple[str, str]], width: int) -> list[str]:
        text = facts(lines, width)
        return text.split("\n") if text else []

    def _frame(self, step: str) -> Frame | None:
        return next((frame for frame in reversed(self._frames) if frame.started.step == step), None)


def _closing_table(rows: tuple[tuple[str, ...], ...], width: int) -> str:
    columns = [Column(title, importance=len(rows[0]) - place) for place, title in enumerate(rows[0])]
    return table(columns, rows[1:], width)


def _short(seconds: float) -> str:
    return f"{seconds:.0f} s" if 60 <= seconds < 600 else duration(seconds)


def _first_clause(text: str, width: int) -> str:
    return text if cell_width(text) <= width else shorten(text.partition(";")[0], width)

"""A notebook: one display that is updated, and stays in the saved file as it was last.

A real table first, inline style only, no script, no widget; colours are the theme's own (`currentColor`).
The plain twin is what an 80-column terminal would have said.
"""

from __future__ import annotations

import html
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.core.events import Event, Finding, Finished, Metric, Progress, Sample, Started, Warning
from tunesmith.reporters.base import Reporter
from tunesmith.reporters.quiet import finding_line
from tunesmith.reporters.rows import WIDE, score_text
from tunesmith.reporters.story import Story
from tunesmith.reporters.text import duration, number, plain

SECONDS_BETWEEN = 0.5
PLAIN_WIDTH = 80
CELL = 'style="text-align:left;padding:1px 12px 1px 0;border:0;background:none;color:inherit"'


class Notebook(Reporter):
    """Shows a step in the cell that runs it."""

    def __init__(
        self,
        show: Callable[[dict[str, str], str, bool], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._show = show or show_in_ipython
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._id = uuid.uuid4().hex
        self._story = Story(lambda: PLAIN_WIDTH, self._clock)
        self._lines: list[str] = []
        self._page = Page()
        self._is_shown = False
        self._last = float("-inf")

    def draw(self, event: Event) -> None:
        if self._story.is_idle and self._is_shown:
            self._begin()
        is_outermost = self._story.depth <= (0 if isinstance(event, Started) else 1)
        self._lines += self._story.tell(event)
        self._page.add(event, is_outermost=is_outermost)
        is_due = self._clock() - self._last >= SECONDS_BETWEEN
        if self._story.is_idle or (is_due and (self._lines or isinstance(event, Progress))):
            self._draw()

    def stop(self) -> None:
        if self._is_shown:
            self._draw()

    def _draw(self) -> None:
        bottom = plain("\n".join(self._story.bottom()))
        text = "\n".join([plain("\n".join(self._lines)), bottom]).strip("\n")
        if not text:
            return
        self._show({"text/html": self._page.html(bottom), "text/plain": text}, self._id, self._is_shown)
        self._is_shown = True
        self._last = self._clock()


class Page:
    """What was said, as tables that keep their columns when all styles are removed."""

    def __init__(self) -> None:
        self._facts: list[tuple[str, str]] = []
        self._validations: list[dict[str, str]] = []
        self._scores: list[tuple[str, str, str]] = []
        self._notes: list[str] = []
        self._losses: list[tuple[int, float]] = []
        self._end: Finished | None = None

    def add(self, event: Event, *, is_outermost: bool) -> None:
        """Remember what this event says; of inner steps only what the user must know."""
        match event:
            case Warning():
                self._notes.append(f"! {event.message}")
            case Finding():
                self._notes.append(plain(finding_line(event)))
            case Metric() if event.label:
                took = duration(event.seconds) if event.seconds is not None else ""
                self._scores.append((event.label, plain(score_text(event.values, PLAIN_WIDTH + WIDE)), took))
            case Started() if is_outermost:
                self._facts += ([("", event.title)] if event.title else []) + list(event.lines)
            case Metric() if is_outermost and event.at is not None:
                self._validate(event)
            case Sample() if is_outermost and self._validations:
                self._validations[-1].setdefault(event.prompt, event.answer)
            case Finished() if is_outermost:
                self._end = event
            case _:
                pass

    def _validate(self, event: Metric) -> None:
        row = {"step": f"{event.at:,}"}
        for name, title in (
            ("train_loss", "train"),
            ("validation_loss", "validation"),
            ("tokens_per_second", "tokens/s"),
        ):
            value = event.values.get(name)
            if isinstance(value, int | float):
                row[title] = f"{value:,.0f}" if name == "tokens_per_second" else number(value)
        if event.is_best:
            row[""] = "best"
        loss = event.values.get("validation_loss")
        if isinstance(loss, int | float) and event.at is not None:
            self._losses.append((event.at, float(loss)))
        self._validations.append(row)

    def html(self, bottom: str) -> str:
        """Everything so far; `bottom` is what a terminal would show at its foot."""
        parts = [html_table((), self._facts)] if self._facts else []
        if self._validations:
            titles = list(dict.fromkeys(title for row in self._validations for title in row))
            parts.append(html_table(titles, [[row.get(title, "") for title in titles] for row in self._validations]))
        if self._scores:
            parts.append(html_table((), self._scores))
        if len(self._losses) > 1:
            parts.append(loss_curve(self._losses))
        parts += [html_text(note) for note in self._notes]
        if self._end is None:
            first = next((line for line in bottom.split("\n") if line.strip()), "")
            return "".join([*parts, html_text(first) if first else ""])
        end = self._end
        parts.append(html_text(end.text or duration(end.seconds)))
        if end.table:
            parts.append(html_table(end.table[0], end.table[1:]))
        return "".join([*parts, html_table((), [("next", command) for command in end.next]) if end.next else ""])


def html_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table that reads with all styles removed and follows any theme."""
    style = 'style="border-collapse:collapse;border:0;background:none;color:inherit"'
    head = "".join(f"<th {CELL}>{html.escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td {CELL}>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table {style}>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def html_text(text: str) -> str:
    """A sentence."""
    return f"<div>{html.escape(text)}</div>"


def loss_curve(points: Sequence[tuple[int, float]], width: int = 360, height: int = 80) -> str:
    """An inline SVG of (step, loss) in the text's own colour, with a sentence for those who do not see it."""
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    across, down = (max(steps) - min(steps)) or 1, (max(losses) - min(losses)) or 1.0
    path = " ".join(
        f"{4 + (step - min(steps)) / across * (width - 8):.1f},{4 + (max(losses) - loss) / down * (height - 8):.1f}"
        for step, loss in points
    )
    said = f"validation loss from {losses[0]:.3g} at step {steps[0]} to {losses[-1]:.3g} at step {steps[-1]}"
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="{said}" style="color:inherit">'
        f'<title>{said}</title><polyline points="{path}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
        f"<div>{said}</div>"
    )


def show_in_ipython(data: dict[str, str], display_id: str, is_update: bool) -> None:
    """Hand the two forms to the notebook."""
    import importlib

    display: Any = importlib.import_module("IPython.display").display
    display(data, raw=True, display_id=display_id, update=is_update)

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

from tunesmith.core.events import Event, Metric, Progress
from tunesmith.reporters.base import Reporter
from tunesmith.reporters.story import Story
from tunesmith.reporters.text import plain

SECONDS_BETWEEN = 0.5
PLAIN_WIDTH = 80
CELL = 'style="text-align:left;padding:1px 12px 1px 0;border:0;background:none;color:inherit"'
CODE = 'style="white-space:pre;background:none;color:inherit"'


class Notebook(Reporter):
    """Shows a step in the cell that runs it."""

    def __init__(
        self,
        show: Callable[[dict[str, str], str, bool], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show = show or show_in_ipython
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._id = uuid.uuid4().hex
        self._story = Story(lambda: PLAIN_WIDTH, self._clock)
        self._lines: list[str] = []
        self._losses: list[tuple[int, float]] = []
        self._is_shown = False
        self._last = float("-inf")

    def __call__(self, event: Event) -> None:
        if self._story.is_idle and self._is_shown:
            self._begin()
        self._lines += self._story.tell(event)
        if isinstance(event, Metric) and event.at is not None:
            loss = event.values.get("validation_loss")
            if isinstance(loss, int | float):
                self._losses.append((event.at, float(loss)))
        is_due = self._clock() - self._last >= SECONDS_BETWEEN
        if self._story.is_idle or (is_due and (self._lines or isinstance(event, Progress))):
            self._draw()

    def stop(self) -> None:
        if self._is_shown:
            self._draw()

    def _draw(self) -> None:
        bottom = self._story.bottom()
        text = plain("\n".join([*self._lines, *bottom])).strip("\n")
        if not text:
            return
        self._show({"text/html": to_html(text, self._losses), "text/plain": text}, self._id, self._is_shown)
        self._is_shown = True
        self._last = self._clock()


def to_html(text: str, losses: Sequence[tuple[int, float]] = ()) -> str:
    """The lines as one table, and the validation losses as a curve with its numbers in words."""
    rows = "".join(_row(line) for line in text.split("\n") if line.strip())
    curve = loss_curve(losses) if len(losses) > 1 else ""
    style = 'style="border-collapse:collapse;border:0;background:none;color:inherit"'
    return f"<table {style}><tbody>{rows}</tbody></table>{curve}"


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


def _row(line: str) -> str:
    return f"<tr><td {CELL}><code {CODE}>{html.escape(line)}</code></td></tr>"

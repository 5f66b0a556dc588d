"""Rows that come one by one: validations of a training with a sample answer, scores of a comparison."""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.core.events import Metric, Sample, Value
from tunesmith.reporters.text import (
    Align,
    cell_width,
    count,
    fold,
    gib,
    interval,
    is_flat,
    number,
    pad,
    paint,
    plain,
    shorten,
)

COLUMNS: tuple[tuple[str, str, int, Align], ...] = (
    ("train_loss", "train", 6, "left"),
    ("validation_loss", "validation", 13, "left"),
    ("tokens_per_second", "tokens/s", 9, "right"),
    ("memory_bytes", "memory", 9, "right"),
)
"""Name in the event's values, title, width, side."""
SOURCE_LOSS = "validation_loss."
"""What begins the name of one source's loss, where several are trained together."""
SMALLEST_SAMPLE = 14
WIDE = 90


class TrainingTable:
    """Validations as rows; the row waits for the sample that belongs to it."""

    def __init__(self) -> None:
        self._pending: Metric | None = None
        self._previous: float | None = None
        self._shown: tuple[str, ...] = ()
        self._prompt = ""

    def add(self, metric: Metric) -> None:
        """Keep the row until its sample, or any other event, comes."""
        self._pending = metric

    def sample(self, sample: Sample, width: int) -> list[str]:
        """The pending row with this answer; further samples of the same row are left to samples.md."""
        return self._draw(sample, width) if self._pending else []

    def flush(self, width: int) -> list[str]:
        """The pending row without an answer."""
        return self._draw(None, width) if self._pending else []

    def _draw(self, sample: Sample | None, width: int) -> list[str]:
        metric, self._pending = self._pending, None
        assert metric is not None
        cells = {name: self._cell(name, metric) for name, *_ in COLUMNS if metric.values.get(name) is not None}
        loss = metric.values.get("validation_loss")
        self._previous = float(loss) if isinstance(loss, int | float) else self._previous
        if is_flat(width):
            return [fold(line, width, 2) for line in self._said(metric, cells, sample)]
        lines = []
        if not self._shown:
            self._shown = tuple(name for name in cells if name != "memory_bytes" or width >= WIDE)
            self._prompt = sample.prompt if sample else ""
            titles = {name: title for name, title, *_ in COLUMNS}
            lines.append(self._line("step", {name: titles[name] for name in self._shown}, self._prompt, width))
        answer = sample.answer if sample else ""
        parts = [paint(fold(f"{'':8}{text}", width, 8), "dim") for text in self._sources(metric)]
        return [*lines, self._line(count(metric.at or 0), cells, answer, width), *parts]

    def _sources(self, metric: Metric) -> list[str]:
        """Each source's validation loss, where there are several: `validation loss of kinds 0.41 · texts 2.93`."""
        values = [
            (name.removeprefix(SOURCE_LOSS), value)
            for name, value in metric.values.items()
            if name.startswith(SOURCE_LOSS) and isinstance(value, int | float)
        ]
        return (
            ["validation loss of " + " · ".join(f"{name} {number(value)}" for name, value in values)] if values else []
        )

    def _line(self, step: str, cells: Mapping[str, str], answer: str, width: int) -> str:
        line = f"{step:>5}"
        for name, _, size, side in COLUMNS:
            if name in self._shown:
                line += "   " + pad(cells.get(name, ""), size - (2 if side == "right" else 0), side)
        room = width - cell_width(line) - 3
        return (line + "   " + shorten(answer, room) if answer and room >= SMALLEST_SAMPLE else line).rstrip()

    def _cell(self, name: str, metric: Metric) -> str:
        value = metric.values[name]
        if not isinstance(value, int | float):
            return str(value)
        if name == "tokens_per_second":
            return count(round(value))
        if name == "memory_bytes":
            return gib(value)
        text = number(value, 4 if abs(value) >= 1 else 3)
        if name == "validation_loss" and self._previous is not None and value < self._previous:
            text += paint(" ▼ best", "green") if metric.is_best else " ▼"
        return text

    def _said(self, metric: Metric, cells: Mapping[str, str], sample: Sample | None) -> list[str]:
        titles = {name: title for name, title, *_ in COLUMNS}
        of = f" of {count(metric.of)}" if metric.of else ""
        said = ", ".join(f"{titles[name]} {plain(text).replace(' ▼', '')}" for name, text in cells.items())
        row = f"step {count(metric.at or 0)}{of}: {said}"
        said_of_sources = [text.replace(" · ", ", ") for text in self._sources(metric)]
        return [row, *said_of_sources, *([f"{sample.prompt} {sample.answer}"] if sample else [])]


def scores(values: Mapping[str, Value]) -> dict[str, tuple[float, float, float]]:
    """The values that have an interval: name to (value, low, high)."""
    found = {}
    for name in values:
        three = [values.get(key) for key in (name, f"{name}_low", f"{name}_high")]
        numbers = [float(x) for x in three if isinstance(x, int | float)]
        if len(numbers) == 3:
            found[name] = (numbers[0], numbers[1], numbers[2])
    return found


def score_text(values: Mapping[str, Value], width: int) -> str:
    """The first score with its interval, its name in front where there is room; else the first number."""
    for name, three in scores(values).items():
        text = paint(interval(*three).partition(" ")[0], "bold") + " " + interval(*three).partition(" ")[2]
        return f"{name.replace('_', ' ')} {text}" if width >= WIDE else text
    for name, value in values.items():
        if isinstance(value, int | float):
            return f"{name.replace('_', ' ')} {number(value)}"
    return ""

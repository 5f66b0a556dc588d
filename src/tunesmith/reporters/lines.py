"""Finished lines for pipes, files, CI and screen readers: `HH:MM:SSZ verb key=value …`.

No carriage return, no colour. Progress at most every 10 s; a heartbeat when a minute passed in silence.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from tunesmith.core.events import Event, Finding, Finished, Metric, Progress, Sample, Saved, Started, Value, Warning
from tunesmith.reporters.base import Reporter
from tunesmith.reporters.text import Output

PROGRESS_SECONDS = 10.0
HEARTBEAT_SECONDS = 60.0


class Lines(Reporter):
    """Writes one line per event."""

    def __init__(
        self,
        output: Output,
        *,
        clock: Callable[[], float] = time.monotonic,
        utc: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__()
        self._output = output
        self._clock = clock
        self._utc = utc
        self._last_line = self._last_progress = self._began = clock()
        self._step = ""
        self._stopped = threading.Event()
        self._heart: threading.Thread | None = None

    def start(self) -> None:
        self._began = self._last_line = self._clock()
        self._last_progress = self._began - PROGRESS_SECONDS
        self._stopped.clear()

    def stop(self) -> None:
        self._stopped.set()
        self._heart = None

    def draw(self, event: Event) -> None:
        self._note(event)
        if self._heart is None:
            self._stopped.clear()
            self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._heart.start()
        if isinstance(event, Sample) or (isinstance(event, Progress) and not self._is_due()):
            return
        self._line(*words(event))

    def _note(self, event: Event) -> None:
        """Remember the outermost step, which is what a heartbeat speaks of, until it ends."""
        if isinstance(event, Started | Progress) and not self._step:
            self._step = event.step
        elif isinstance(event, Finished) and event.step == self._step:
            self._step = ""

    def heartbeat(self) -> None:
        """Say that the work goes on, where a minute passed in silence."""
        if self._step and self._clock() - self._last_line >= HEARTBEAT_SECONDS:
            self._line(f"{self._step} working", {"seconds": round(self._clock() - self._began)})

    def _is_due(self) -> bool:
        now = self._clock()
        if now - max(self._last_progress, self._last_line) < PROGRESS_SECONDS:
            return False
        self._last_progress = now
        return True

    def _line(self, verb: str, values: Mapping[str, Value]) -> None:
        text = " ".join(f"{key}={value_text(value)}" for key, value in values.items() if value not in (None, ""))
        with self._drawing:
            self._output.write(f"{self._utc():%H:%M:%SZ} {verb} {text}".rstrip())
            self._last_line = self._clock()

    def _beat(self) -> None:
        stopped = self._stopped
        while not stopped.wait(1.0):
            self.heartbeat()


def words(event: Event) -> tuple[str, dict[str, Value]]:
    """The verb and the values of an event's line."""
    match event:
        case Started():
            place: dict[str, Value] = {"part": f"{event.at}/{event.of}"} if event.of else {}
            return f"{event.step} start", {**place, **event.values}
        case Progress():
            many: dict[str, Value] = {"done": event.done, "of": event.total or None}
            return f"{event.step} progress", {"label": event.label, **many, **event.values}
        case Metric():
            at: dict[str, Value] = {"step": event.at, "of": event.of, "label": event.label, "seconds": event.seconds}
            return event.step, {**at, **event.values, **({"best": True} if event.is_best else {})}
        case Sample():
            return f"{event.step} sample", {"step": event.at, "prompt": event.prompt, "answer": event.answer}
        case Finding():
            head: dict[str, Value] = {"level": event.level, "code": event.code, "where": event.where}
            return "data finding", {**head, "rows": event.num_rows, "message": event.message, "remedy": event.remedy}
        case Warning():
            return f"{event.step} warning", {"code": event.code, **event.values, "message": event.message}
        case Saved():
            return f"{event.step} saved", {"what": event.what, "path": event.path, "bytes": event.num_bytes}
        case Finished():
            return f"{event.step} done", {"seconds": event.seconds or None, **event.values}


def value_text(value: Value) -> str:
    """A value without spaces around it; text with spaces, quotes or `=` as a JSON string."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    text = str(value)
    return text if re.fullmatch(r'[^\s"=]+', text) else json.dumps(text, ensure_ascii=False)

"""One event per line as JSON, for other programs: a stable `type`, the event's own fields, and `at_utc`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from tunesmith.core.events import Event
from tunesmith.reporters.base import Reporter


class JsonLines(Reporter):
    """Writes every event, unthrottled."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__()
        self._stream = stream
        self._clock = clock

    def draw(self, event: Event) -> None:
        record = {"type": type(event).__name__.lower(), "at_utc": self._clock().isoformat(timespec="milliseconds")}
        line = json.dumps({**record, **to_dict(event)}, allow_nan=False)
        self._stream.write(line + "\n")
        self._stream.flush()


def to_dict(event: Event) -> dict[str, Any]:
    """The event's fields as JSON values; numbers that are not finite become their names."""
    return {field.name: _plain(getattr(event, field.name)) for field in dataclasses.fields(event)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

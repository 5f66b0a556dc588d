"""What watches over a run: numbers that are none, gradients that leap, signals."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from types import FrameType

from tunesmith.core.errors import Interrupted

SPIKE = 8.0
"""A gradient norm so many times its running median is reported."""


@dataclass
class SpikeWatch:
    """The running median of gradient norms."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=50))

    def ratio(self, norm: float) -> float:
        """How many times its median the norm is; 0 until 10 norms were seen."""
        usual = median(self.recent) if len(self.recent) >= 10 else 0.0
        self.recent.append(norm)
        return norm / usual if usual else 0.0


@dataclass
class StopRequest:
    """Whether the user asked to stop."""

    is_made: bool = False


@contextmanager
def stopping_on_signals(on_request: Callable[[], None]) -> Iterator[StopRequest]:
    """Within it the first SIGINT or SIGTERM sets the request, and the second raises `Interrupted` at once.

    `on_request` is called at the first one. Outside the main thread signals stay as they are.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.is_made:
            raise Interrupted("stopped at once; the last checkpoint stands")
        request.is_made = True
        on_request()

    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)

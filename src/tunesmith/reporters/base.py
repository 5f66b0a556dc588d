"""What a reporter is: an `Emit` that can be started and stopped, twice without harm."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from types import TracebackType
from typing import Self

from tunesmith.core.events import Event


class Reporter(ABC):
    """Draws the events of steps, one after the other.

    A signal's handler may speak while an event is being drawn (Ctrl-C: "finishing step 412"); what it says is drawn
    next, for a stream must not be written to from within a write.
    """

    def __init__(self) -> None:
        self._drawing = threading.RLock()
        self._is_drawing = False
        self._waiting: deque[Event] = deque()

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        with self._drawing:
            self._waiting.append(event)
            if self._is_drawing:
                return
            self._is_drawing = True
            try:
                while self._waiting:
                    self.draw(self._waiting.popleft())
            finally:
                self._is_drawing = False

    @abstractmethod
    def draw(self, event: Event) -> None:
        """Draw one event; never entered twice at a time."""

    def start(self) -> None:  # noqa: B027 - most have nothing to do
        """Get ready; what takes the terminal waits for the first event."""

    def stop(self) -> None:  # noqa: B027
        """Give the terminal back; a later event may take it again."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

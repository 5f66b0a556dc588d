"""What a reporter is: an `Emit` that can be started and stopped, twice without harm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from tunesmith.core.events import Event


class Reporter(ABC):
    """Draws the events of steps."""

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Draw one event."""

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

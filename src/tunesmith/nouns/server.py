"""A server beside other work."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tunesmith.reporters.notebook import html_table

if TYPE_CHECKING:
    from tunesmith.steps.serve import RunningServer


@dataclass(frozen=True, repr=False)
class Server:
    """A server on a thread of this process: use it as a context manager, or call `stop`."""

    running: RunningServer

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return self.running.url

    @property
    def models(self) -> tuple[str, ...]:
        """The names it answers to."""
        return self.running.models

    def client(self) -> Any:
        """The official `openai` client, ready to ask."""
        return self.running.client()

    def stop(self) -> None:
        """Finish what is in flight and end."""
        self.running.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Server({self.url!r}, {', '.join(self.models)})"

    def _repr_html_(self) -> str:
        return html_table(("url", "models"), [(f"{self.url}/v1", ", ".join(self.models))])

"""A terminal: what happened scrolls, a bar stays at the bottom.

One rich `Live` per process, started by the first progress and gone when the outermost step ends. rich only moves
the cursor: colours, glyphs and layout are decided before it sees the text.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

from tunesmith.core.events import Event, Progress
from tunesmith.reporters.base import Reporter
from tunesmith.reporters.story import Story
from tunesmith.reporters.text import Output

if TYPE_CHECKING:
    from rich.live import Live as RichLive
    from rich.text import Text

REDRAWS_PER_SECOND = 4


class Live(Reporter):
    """Draws on the terminal behind `output`."""

    _one: ClassVar[threading.Lock] = threading.Lock()
    """Held by whoever draws at the bottom; a second reporter only scrolls."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output
        self._story = Story(lambda: output.width)
        self._lock = threading.RLock()
        self._live: RichLive | None = None

    def draw(self, event: Event) -> None:
        with self._lock:
            lines = self._story.tell(event)
            is_idle = self._story.is_idle
        if is_idle:  # outside the lock: rich's thread may be waiting for it
            self.stop()
        elif isinstance(event, Progress):
            self._begin()
        if lines:
            self._scroll("\n".join(lines))

    def stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()
            self._one.release()

    def _begin(self) -> None:
        if self._live is not None or not self._one.acquire(blocking=False):
            return
        from rich.console import Console
        from rich.live import Live as RichLive

        self._live = RichLive(
            console=Console(file=self._output.stream, force_terminal=True, highlight=False),
            get_renderable=self._bottom,
            refresh_per_second=REDRAWS_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            vertical_overflow="crop",
        )
        self._live.start()

    def _scroll(self, text: str) -> None:
        if self._live is None:
            self._output.write(text)
        else:
            self._live.console.print(self._text(text), soft_wrap=True)

    def _bottom(self) -> Text:
        with self._lock:
            return self._text("\n".join(self._story.bottom()), is_cut=True)

    def _text(self, text: str, *, is_cut: bool = False) -> Text:
        from rich.text import Text

        drawn = Text.from_ansi(self._output.fit(text), no_wrap=is_cut)
        drawn.overflow = "crop" if is_cut else "ignore"
        return drawn

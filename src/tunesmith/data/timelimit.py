"""A time limit for Python code that may never end (a hostile chat template), in any thread.

One watching thread looks at the deadlines a few times a second and raises `TimeUp` inside a thread that is late:
setting a limit therefore costs a microsecond, not a thread. A single call into C cannot be stopped this way.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LOOK_SECONDS = 0.2


class TimeUp(Exception):  # noqa: N818 - an event, not a fault of ours
    """The time limit has passed."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` in this thread if the block takes longer."""
    thread = threading.get_ident()
    _watch.deadlines[thread] = time.monotonic() + seconds
    if not _watch.is_running:
        _watch.start()
    try:
        yield
    except Exception:
        if thread not in _watch.deadlines:  # code that handles exceptions (jinja2) may turn ours into another
            raise TimeUp from None
        raise
    finally:
        _watch.deadlines.pop(thread, None)


class _Watch:
    """The deadlines of threads, and the thread that looks at them while there are any."""

    def __init__(self) -> None:
        self.deadlines: dict[int, float] = {}
        self.is_running = False
        self._lock = threading.Lock()

    def start(self) -> None:
        with self._lock:
            if not self.is_running:
                self.is_running = True
                threading.Thread(target=self._look, name="time-limit", daemon=True).start()

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            for thread, deadline in list(self.deadlines.items()):
                if now > deadline and self.deadlines.pop(thread, None) is not None:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimeUp))


_watch = _Watch()

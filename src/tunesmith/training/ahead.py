"""Batches made ahead in a thread, so that the step never waits for data; how long it did wait is measured.

What is made is a pure function of its key (the step, its rows, how many tokens go together), so a wrong guess of the
next key costs time and changes no number: it is thrown away. A fault in making a batch is raised in the step that owns
it, not in the one that was under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

Item = TypeVar("Item")
DEPTH = 3
"""Items that wait: enough to bridge a slow row, few enough that their tensors are nothing beside a step's."""
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Key:
    """What decides the batches of a step."""

    step: int
    rows: tuple[int, ...]
    micro_tokens: int


@dataclass(frozen=True)
class _End:
    """After the last item of a key, with the fault that ended it, if one did."""

    fault: BaseException | None = None


class Ahead(Generic[Item]):
    """The items of one key after the other: `make` gives a key's items, `following` guesses the next key.

    With `is_threaded` false everything is made when it is asked for, which counts as waiting.
    """

    def __init__(
        self,
        make: Callable[[Key], Iterator[Item]],
        following: Callable[[Key], Key | None],
        *,
        is_threaded: bool = True,
    ) -> None:
        self._make, self._following, self._is_threaded = make, following, is_threaded
        self._queue: Queue[tuple[Key, Any]] = Queue(DEPTH)
        self._stop = Event()
        self._thread: Thread | None = None
        self._next: Key | None = None
        """The key whose items come next out of the queue; None within a step, and where no thread runs."""
        self.wait_seconds = 0.0
        """How long all steps so far have waited for their items."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and throw away what it made."""
        self._stop.set()
        if self._thread is not None:
            while self._thread.is_alive():
                self._drain()
                self._thread.join(_LOOK_SECONDS)
        self._drain()
        self._thread, self._next = None, None

    def items(self, key: Key) -> Iterator[Item]:
        """The items of a key, in order; those of the following one are being made meanwhile.

        Raises:
            BaseException: Whatever `make` raised for this key.
        """
        if not self._is_threaded:
            yield from self._timed(self._make(key))
            return
        if self._next != key:
            self.close()
            self._start(key)
        self._next = None  # a step that is given up in the midst of its items begins anew
        while True:
            began = time.perf_counter()
            of, item = self._queue.get()
            self.wait_seconds += time.perf_counter() - began
            assert of == key, (of, key)
            if not isinstance(item, _End):
                yield item
                continue
            self._next = self._following(key)
            if item.fault is not None:
                self.close()
                raise item.fault
            return

    def _timed(self, items: Iterator[Item]) -> Iterator[Item]:
        while True:
            began = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.wait_seconds += time.perf_counter() - began
            yield item

    def _start(self, key: Key) -> None:
        self._stop = Event()
        self._thread = Thread(target=self._run, args=(key, self._stop), name="batches", daemon=True)
        self._thread.start()

    def _run(self, key: Key, stop: Event) -> None:
        following: Key | None = key
        while following is not None:
            of = following
            try:
                for item in self._make(of):
                    if not self._put((of, item), stop):
                        return
                following = self._following(of)
            except BaseException as fault:  # handed to the step that owns it, which raises it
                self._put((of, _End(fault)), stop)
                return
            if not self._put((of, _End()), stop):
                return

    def _put(self, item: tuple[Key, Any], stop: Event) -> bool:
        """Whether there was room before the reader was closed."""
        while not stop.is_set():
            try:
                self._queue.put(item, timeout=_LOOK_SECONDS)
            except Full:
                continue
            return True
        return False

    def _drain(self) -> None:
        while True:
            try:
                self._queue.get_nowait()
            except Empty:
                return

"""Server-sent events as OpenAI sends them, and clients that leave.

FastAPI does not cancel a handler when its client leaves, so whatever waits is raced against `http.disconnect`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


class ClientLeft(Exception):  # noqa: N818 - it is not a fault
    """Nobody is there to read the answer."""


def event(value: Any) -> bytes:
    """One event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result, unless the client leaves first: then the work is cancelled.

    The request's body must have been read.

    Raises:
        ClientLeft: The client left.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        await _cancel(watch, task)


class EventStream(Response):
    """Sends events as they come; `on_end` is called whatever happens, also when the client leaves."""

    def __init__(self, events: AsyncIterator[bytes], *, keep_alive_seconds: float, on_end: Callable[[], None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.headers["X-Accel-Buffering"] = "no"
        del self.headers["content-length"]
        self._events = events
        self._keep_alive_seconds = keep_alive_seconds
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop when the client leaves."""
        sender = asyncio.ensure_future(self._send(send))
        watch = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sender, watch}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                sender.result()
        finally:
            self._on_end()
            await _cancel(watch, sender)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        iterator = aiter(self._events)
        upcoming: asyncio.Future[bytes] | None = None
        try:
            while True:
                upcoming = upcoming or asyncio.ensure_future(_next(iterator))
                done, _ = await asyncio.wait({upcoming}, timeout=self._keep_alive_seconds)
                body = upcoming.result() if done else KEEP_ALIVE
                if done:
                    upcoming = None
                if not body:
                    break
                await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            if upcoming is not None:
                await _cancel(upcoming)
            if isinstance(iterator, AsyncGenerator):  # cancelled before it began to run again, it would stay open
                await iterator.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _next(iterator: AsyncIterator[bytes]) -> bytes:
    return await anext(iterator, b"")


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

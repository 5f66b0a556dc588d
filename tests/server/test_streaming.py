"""Streams and leaving clients, at the level of ASGI messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import Request

from tunesmith.server.streaming import KEEP_ALIVE, ClientLeft, EventStream, event, unless_left

pytestmark = pytest.mark.anyio


class Client:
    """The other end: what it was sent, and when it leaves."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.leaves = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(dict(message))

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


async def answer(client: Client, events: AsyncIterator[bytes], ended: list[str]) -> None:
    stream = EventStream(events, keep_alive_seconds=0.05, on_end=lambda: ended.append("end"))
    await asyncio.wait_for(stream({"type": "http"}, client.receive, client.send), 5)


async def test_events_are_sent_as_they_come_and_the_end_is_told() -> None:
    async def events() -> AsyncIterator[bytes]:
        yield event({"text": "é"})
        yield b"data: [DONE]\n\n"

    client, ended = Client(), []
    await answer(client, events(), ended)
    assert client.sent[0]["status"] == 200
    assert client.bodies == ['data: {"text": "é"}\n\n'.encode(), b"data: [DONE]\n\n", b""]
    assert ended == ["end"]


async def test_silence_is_filled_with_comments_and_nothing_is_lost() -> None:
    async def events() -> AsyncIterator[bytes]:
        yield b"1"
        await asyncio.sleep(0.18)
        yield b"2"

    client = Client()
    await answer(client, events(), [])
    bodies = client.bodies
    assert bodies[0] == b"1"
    assert bodies[-2:] == [b"2", b""]
    assert set(bodies[1:-2]) == {KEEP_ALIVE}
    assert len(bodies) >= 5


async def test_a_client_that_leaves_ends_the_stream() -> None:
    is_closed = []

    async def events() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0.01)
        finally:
            is_closed.append(True)

    client, ended = Client(), []
    task = asyncio.create_task(answer(client, events(), ended))
    await asyncio.sleep(0.05)
    client.leaves.set()
    await task
    assert ended == ["end"]
    assert is_closed == [True]
    assert client.bodies[-1] == b"x"


async def test_work_is_cancelled_when_its_client_leaves() -> None:
    client = Client()
    request = Request({"type": "http"}, client.receive)
    was_cancelled = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            was_cancelled.append(True)
            raise

    asyncio.get_running_loop().call_later(0.02, client.leaves.set)
    with pytest.raises(ClientLeft):
        await unless_left(request, work())
    assert was_cancelled == [True]


async def test_work_gives_its_result_or_its_error_to_a_client_that_stays() -> None:
    request = Request({"type": "http"}, Client().receive)

    async def works() -> int:
        return 7

    async def fails() -> int:
        raise ValueError("no")

    assert await unless_left(request, works()) == 7
    with pytest.raises(ValueError, match="no"):
        await unless_left(request, fails())

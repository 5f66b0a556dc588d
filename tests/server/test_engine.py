"""The engine on hand-made iterators: turns, limits, leaving, stopping. Real models are in test_openai.py."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import pytest

from tunesmith.core.errors import UserError
from tunesmith.server.engine import Engine, Job, Limits, Step, Ticket
from tunesmith.server.errors import ApiError
from tunesmith.server.monitor import Monitor

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Letter:
    """One piece of an answer."""

    text: str
    finish_reason: str = ""
    token_ids: tuple[int, ...] = (1,)
    logprobs: None = None


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(Monitor(), Limits(max_running=8, max_waiting=2, token_budget=1000))
    yield engine
    engine.stop()


def job(
    text: str,
    *,
    group: str = "a",
    num_tokens: int = 10,
    gate: threading.Event | None = None,
    log: list[str] | None = None,
) -> Job:
    """A sequence that spells `text`; with a gate it waits before every letter."""

    def spell() -> Generator[Letter, None, None]:
        try:
            for place, letter in enumerate(text):
                if gate:
                    gate.wait(5)
                if log is not None:
                    log.append(group)
                yield Letter(letter, "stop" if place == len(text) - 1 else "")
        finally:
            if log is not None:
                log.append("closed")

    return Job(group, spell, num_tokens)  # type: ignore[arg-type]


async def read(ticket: Ticket) -> dict[int, str]:
    texts: dict[int, str] = {}
    async for step in ticket.steps():
        texts[step.index] = texts.get(step.index, "") + step.piece.text
    return texts


async def until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not claim():
        assert time.monotonic() < end, "it never became true"
        await asyncio.sleep(0.005)


async def test_each_answer_of_a_request_is_whole(engine: Engine) -> None:
    assert await read(engine.submit([job("abc"), job("de")])) == {0: "abc", 1: "de"}


async def test_requests_take_turns_and_models_are_stepped_together() -> None:
    log: list[str] = []
    engine = Engine(Monitor())
    with engine.paused():
        tickets = [engine.submit([job("....", group=name, log=log)]) for name in "abab"]
        assert engine.num_waiting == 4
    await asyncio.gather(*[read(ticket) for ticket in tickets])
    engine.stop()
    assert "".join(entry for entry in log if entry != "closed") == "aabb" * 4


async def test_a_full_queue_refuses_with_503_and_when_to_come_back(engine: Engine) -> None:
    gate = threading.Event()
    running = engine.submit([job("x", gate=gate) for _ in range(8)])
    await until(lambda: engine.num_running == 1)
    waiting = [engine.submit([job("y")]) for _ in range(2)]
    with pytest.raises(ApiError) as caught:
        engine.submit([job("z")])
    assert caught.value.status == 503
    assert caught.value.code == "queue_full"
    assert 1 <= int(caught.value.headers["retry-after"]) <= 60
    assert "x-should-retry" not in caught.value.response().headers
    gate.set()
    for ticket in (running, *waiting):
        await read(ticket)


async def test_the_token_budget_refuses_but_never_a_lone_request(engine: Engine) -> None:
    gate = threading.Event()
    lone = engine.submit([job("x", num_tokens=5000, gate=gate)])
    with pytest.raises(ApiError, match="token budget"):
        engine.submit([job("y", num_tokens=1)])
    gate.set()
    assert await read(lone) == {0: "x"}


async def test_who_gives_up_frees_the_place_within_a_step(engine: Engine) -> None:
    log: list[str] = []
    gate = threading.Event()
    ticket = engine.submit([job("x" * 1000, gate=gate, log=log)])
    gate.set()
    await until(lambda: len(log) > 3)
    ticket.cancel()
    ticket.cancel()
    before = len(log)
    await until(lambda: engine.num_running == 0)
    await until(lambda: log[-1] == "closed")
    assert len(log) < 1000
    assert before < 1000


async def test_who_gives_up_while_waiting_leaves_the_queue_at_once(engine: Engine) -> None:
    gate = threading.Event()
    running = engine.submit([job("x", gate=gate) for _ in range(8)])
    await until(lambda: engine.num_running == 1)
    waiting = engine.submit([job("y")])
    waiting.cancel()
    assert engine.num_waiting == 0
    gate.set()
    await read(running)


async def test_a_bug_in_one_sequence_ends_only_its_request(engine: Engine) -> None:
    def broken() -> Generator[Letter, None, None]:
        yield Letter("a")
        raise RuntimeError("secret detail")

    other = engine.submit([job("whole")])
    with pytest.raises(ApiError) as caught:
        await read(engine.submit([Job("b", broken, 10), job("never ends" * 100)]))  # type: ignore[arg-type]
    assert caught.value.status == 500
    assert "secret" not in caught.value.message
    assert await read(other) == {0: "whole"}
    await until(lambda: engine.num_running == 0)


async def test_a_model_without_numbers_is_counted_and_said(engine: Engine) -> None:
    def nan() -> Generator[Letter, None, None]:
        raise UserError("the model's output is not a number.", code="nan_logits")
        yield Letter("")

    with pytest.raises(ApiError) as caught:
        await read(engine.submit([Job("b", nan, 10)]))  # type: ignore[arg-type]
    assert (caught.value.status, caught.value.code) == (500, "nan_logits")
    assert engine.monitor.registry.get_sample_value("tunesmith_nan_logits_total") == 1


async def test_stopping_ends_everything_with_an_error(engine: Engine) -> None:
    ticket = engine.submit([job("x" * 100_000)])
    steps = ticket.steps()
    assert isinstance(await anext(steps), Step)
    await asyncio.to_thread(engine.stop)
    with pytest.raises(ApiError, match="shutting down"):
        while True:
            await anext(steps)
    assert not engine.is_alive
    with pytest.raises(ApiError, match="shutting down"):
        engine.submit([job("y")])


async def test_a_closed_engine_finishes_what_it_has_and_takes_nothing_new(engine: Engine) -> None:
    ticket = engine.submit([job("abc")])
    engine.close()
    with pytest.raises(ApiError) as caught:
        engine.submit([job("y")])
    assert caught.value.status == 503
    assert await read(ticket) == {0: "abc"}


async def test_nothing_is_computed_while_paused(engine: Engine) -> None:
    log: list[str] = []
    ticket = engine.submit([job("x" * 2000, log=log)])
    await until(lambda: len(log) > 3)
    with engine.paused():
        before = len(log)
        await asyncio.sleep(0.05)
        assert len(log) == before
    await read(ticket)
    assert log.count("a") == 2000

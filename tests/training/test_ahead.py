"""Batches made ahead: the same in the same order whatever was guessed, and a fault where it belongs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tunesmith.training.ahead import DEPTH, Ahead, Key


def _key(step: int, micro_tokens: int = 8) -> Key:
    return Key(step, (step, step + 1), micro_tokens)


def _following(key: Key) -> Key | None:
    return replace(_key(key.step + 1), micro_tokens=key.micro_tokens) if key.step < 9 else None


def _items(key: Key) -> Iterator[str]:
    for number in range(3):
        yield f"{key.step}.{number}.{key.micro_tokens}"


@pytest.mark.parametrize("is_threaded", [True, False])
def test_every_step_gets_its_items_in_order(is_threaded: bool) -> None:
    with Ahead(_items, _following, is_threaded=is_threaded) as ahead:
        for step in range(10):
            assert list(ahead.items(_key(step))) == list(_items(_key(step)))
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_a_wrong_guess_is_thrown_away() -> None:
    with Ahead(_items, _following) as ahead:
        for key in (_key(0), _key(1), _key(5), _key(6), _key(6, 4), _key(7, 4), _key(0), _key(9), _key(0)):
            assert list(ahead.items(key)) == list(_items(key))
        first = ahead.items(_key(1))
        assert next(first) == "1.0.8"  # memory runs out here: the same step is asked for with half the tokens
        assert list(ahead.items(_key(1, 4))) == list(_items(_key(1, 4)))
        assert list(ahead.items(_key(2, 4))) == list(_items(_key(2, 4)))
        assert next(ahead.items(_key(3, 4))) == "3.0.4"
        assert list(ahead.items(_key(3, 4))) == list(_items(_key(3, 4)))  # given up, and begun anew


def test_a_fault_is_raised_in_the_step_that_owns_it_and_the_next_can_go_on() -> None:
    def items(key: Key) -> Iterator[str]:
        yield from _items(key)
        if key.step == 1:
            raise ValueError("row 7")

    with Ahead(items, _following) as ahead:
        first = ahead.items(_key(0))
        assert next(first) == "0.0.8"
        time.sleep(0.05)  # the thread has met the fault of step 1, or waits for room before it
        assert list(first) == ["0.1.8", "0.2.8"]
        second = ahead.items(_key(1))
        assert [next(second) for _ in range(3)] == list(_items(_key(1)))
        with pytest.raises(ValueError, match="row 7"):
            next(second)
        assert list(ahead.items(_key(2))) == list(_items(_key(2)))


def test_the_thread_is_ahead_by_no_more_than_its_room() -> None:
    made: list[str] = []

    def items(key: Key) -> Iterator[str]:
        for item in _items(key):
            made.append(item)
            yield item

    with Ahead(items, _following) as ahead:
        reader = ahead.items(_key(0))
        next(reader)
        deadline = time.monotonic() + 5
        while len(made) <= DEPTH and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert DEPTH < len(made) <= DEPTH + 2


def test_waiting_is_measured() -> None:
    def slow(key: Key) -> Iterator[str]:
        time.sleep(0.05)
        yield "late"

    for is_threaded in (True, False):
        with Ahead(slow, _following, is_threaded=is_threaded) as ahead:
            list(ahead.items(_key(0)))
            assert ahead.wait_seconds >= 0.04

"""The engine: one thread that gives every active sequence one token in turn; sequences join and leave at any step.

Each sequence keeps its own KV cache and is computed alone, so that a seed gives the same text alone or among others
by construction (docs/decisions/0003). What it does *not* know: HTTP, models, tokenizers; a job is an iterator to step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError
from tunesmith.server.errors import ApiError, internal_error
from tunesmith.server.monitor import Monitor

if TYPE_CHECKING:
    from tunesmith.models.sample import Piece

log = logging.getLogger("tunesmith.server")
STOPPED = "The server is shutting down."


@dataclass(frozen=True)
class Limits:
    """How much the engine takes on at once."""

    max_running: int = 16
    """Sequences that take turns; more would make each of them slow."""
    max_waiting: int = 64
    """Requests that wait for a place; the next one is turned away."""
    token_budget: int = 131_072
    """Prompt and answer tokens of all requests, running and waiting; bounds the memory of the KV caches."""


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to generate."""

    group: str
    """Sequences of one group (one model) are stepped one after the other."""
    open: Callable[[], Generator[Piece, None, None]]
    """Called on the engine's thread; stepping it computes one token."""
    num_tokens: int
    """Prompt tokens and the most that may be generated."""


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of the answer `index` of a request."""

    index: int
    piece: Piece


class Ticket:
    """The caller's end of a request: its pieces as they come, and a way to give up."""

    def __init__(self, engine: Engine, num_jobs: int, num_tokens: int) -> None:
        self.submitted = time.monotonic()
        self.num_tokens = num_tokens
        self.num_open = num_jobs
        self.is_cancelled = False
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Step | ApiError] = asyncio.Queue()

    async def steps(self) -> AsyncIterator[Step]:
        """The pieces of all answers, until each has its finish reason.

        Raises:
            ApiError: The engine failed or was stopped.
        """
        num_open = self.num_open
        while num_open:
            event = await self._queue.get()
            if isinstance(event, ApiError):
                raise event
            num_open -= bool(event.piece.finish_reason)
            yield event

    def cancel(self) -> None:
        """Give up: what runs is dropped before its next step, what waits at once. Safe to call twice."""
        self._engine.forget(self)

    def put(self, event: Step | ApiError) -> None:
        """Called on the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to read it
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)


@dataclass(slots=True, eq=False)
class _Sequence:
    ticket: Ticket
    index: int
    job: Job
    pieces: Generator[Piece, None, None] | None = None
    last_step: float = 0.0


@dataclass(slots=True, eq=False)
class _Waiting:
    ticket: Ticket
    sequences: list[_Sequence] = field(default_factory=list)


class Engine:
    """Runs jobs on a thread of its own. Every method may be called from any thread."""

    def __init__(self, monitor: Monitor, limits: Limits = Limits()) -> None:
        self.limits = limits
        self.monitor = monitor
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._running: list[_Sequence] = []
        self._is_open = True
        self._is_stopping = False
        self._num_pauses = 0
        self._is_computing = False
        self._rate = 0.0
        self._thread = threading.Thread(target=self._work, name="tunesmith-engine", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Requests with a sequence that is being generated."""
        with self._changed:
            return len({id(sequence.ticket) for sequence in self._running})

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        with self._changed:
            return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    @property
    def is_open(self) -> bool:
        """Whether new requests are taken."""
        return self._is_open and not self._is_stopping

    def submit(self, jobs: Sequence[Job]) -> Ticket:
        """Take on a request of one or more sequences; they start together.

        Raises:
            ApiError: 503, when the queue is full or the server is shutting down.
        """
        ticket = Ticket(self, len(jobs), sum(job.num_tokens for job in jobs))
        assert 0 < len(jobs) <= self.limits.max_running, len(jobs)
        with self._changed:
            if not self.is_open:
                raise self._rejected("draining", STOPPED, seconds=30)
            if len(self._waiting) >= self.limits.max_waiting:
                raise self._rejected("queue_full", f"{len(self._waiting)} requests are waiting already.")
            held = self._held_tokens()
            if held and held + ticket.num_tokens > self.limits.token_budget:
                raise self._rejected("token_budget", "The requests taken on already fill the server's token budget.")
            waiting = [_Sequence(ticket, index, job) for index, job in enumerate(jobs)]
            self._waiting.append(_Waiting(ticket, waiting))
            self._changed.notify_all()
        return ticket

    def forget(self, ticket: Ticket) -> None:
        """Drop a request."""
        with self._changed:
            ticket.is_cancelled = True
            self._waiting = deque(entry for entry in self._waiting if entry.ticket is not ticket)

    def close(self) -> None:
        """Take no new requests; those taken on go on."""
        with self._changed:
            self._is_open = False

    def stop(self, seconds: float = 5.0) -> None:
        """End everything now, with an error to those who wait, and the thread with it."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(seconds)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it nothing is computed: loading a model changes torch's defaults for the whole process."""
        with self._changed:
            self._num_pauses += 1
            while self._is_computing:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._num_pauses -= 1
                self._changed.notify_all()

    def _rejected(self, reason: str, message: str, seconds: int | None = None) -> ApiError:
        self.monitor.rejections.labels(reason).inc()
        wait = seconds if seconds is not None else self._seconds_to_wait()
        text = f"{message} Try again in {wait} s."
        return ApiError(503, text, code=reason, is_final=False, headers={"retry-after": str(wait)})

    def _seconds_to_wait(self) -> int:
        """Until about a quarter of the work taken on is done, from the speed of late; 1 to 60."""
        seconds = self._held_tokens() / 4 / self._rate if self._rate else 1.0
        return int(min(60, max(1, seconds)))

    def _held_tokens(self) -> int:
        tickets = {id(s.ticket): s.ticket for s in self._running} | {id(e.ticket): e.ticket for e in self._waiting}
        return sum(ticket.num_tokens for ticket in tickets.values())

    def _work(self) -> None:
        try:
            self._take_turns()
        finally:  # a bug here must not leave anybody waiting for ever; /readyz then says that the engine has died
            self._is_stopping = True
            self._end_all()

    def _take_turns(self) -> None:
        while True:
            with self._changed:
                while not self._is_stopping and (self._num_pauses or not (self._running or self._waiting)):
                    self._changed.wait()
                if self._is_stopping:
                    return
                self._admit()
                self._is_computing = True
            self._round()
            with self._changed:
                self._is_computing = False
                if self._num_pauses:
                    self._changed.notify_all()

    def _admit(self) -> None:
        while self._waiting:
            sequences = self._waiting[0].sequences
            if len(self._running) + len(sequences) > self.limits.max_running:
                return
            self._waiting.popleft()
            self._running.extend(sequences)
            self._running.sort(key=lambda sequence: sequence.job.group)
            self.monitor.queue_time.observe(time.monotonic() - sequences[0].ticket.submitted)

    def _round(self) -> None:
        """One token for each active sequence, model by model."""
        begin, done = time.monotonic(), 0
        for sequence in list(self._running):
            if self._is_stopping:
                return
            if sequence.ticket.is_cancelled or self._step(sequence):
                self._drop(sequence)
            done += 1
        elapsed = max(time.monotonic() - begin, 1e-6)
        self._rate = 0.9 * self._rate + 0.1 * done / elapsed if self._rate else done / elapsed

    def _step(self, sequence: _Sequence) -> bool:
        """Compute one piece and hand it on; True when the sequence has ended."""
        try:
            if sequence.pieces is None:
                sequence.pieces = sequence.job.open()
            piece = next(sequence.pieces)
        except UserError as error:
            return self._fail(sequence, self._refusal(error))
        except Exception:
            log.exception("a sequence failed")
            return self._fail(sequence, internal_error())
        now = time.monotonic()
        if sequence.last_step:
            self.monitor.inter_token.observe(now - sequence.last_step)
        elif sequence.index == 0:
            self.monitor.first_token.observe(now - sequence.ticket.submitted)
        sequence.last_step = now
        sequence.ticket.put(Step(sequence.index, piece))
        return bool(piece.finish_reason)

    def _refusal(self, error: UserError) -> ApiError:
        status = 400
        if error.code == "nan_logits":
            self.monitor.nan_logits.inc()
            status = 500
        return ApiError(status, f"{error.message} {error.remedy}".strip(), code=error.code)

    def _fail(self, sequence: _Sequence, error: ApiError) -> bool:
        sequence.ticket.put(error)
        sequence.ticket.is_cancelled = True
        return True

    def _drop(self, sequence: _Sequence) -> None:
        with self._changed:
            self._running.remove(sequence)
        if sequence.pieces is not None:
            sequence.pieces.close()
            sequence.pieces = None

    def _end_all(self) -> None:
        with self._changed:
            tickets = {id(s.ticket): s.ticket for s in self._running} | {id(e.ticket): e.ticket for e in self._waiting}
            self._running.clear()
            self._waiting.clear()
        for ticket in tickets.values():
            ticket.put(ApiError(503, STOPPED, code="shutting_down", is_final=False, headers={"retry-after": "30"}))

"""Trials in processes of their own, several at once: each asks after every validation whether it may go on.

A worker that dies (the system takes it when memory runs out) costs its trial, not the search. Workers end with the
process that started them, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Literal, Self

from tunesmith.core.errors import UserError
from tunesmith.steps.search_trial import Result, Task, run_trial

SECONDS_BETWEEN_LOOKS = 0.5
MEMORY_SHARE = 0.8
"""Of the free memory that workers may take together."""


@dataclass(frozen=True)
class Message:
    """What a worker says: a validation (its number and loss), a result, or a fault that ends the search."""

    kind: Literal["validation", "result", "fault"]
    number: int
    """The trial's."""
    content: Any


@dataclass
class Worker:
    """A process, the way to it, and the trial it is at."""

    process: BaseProcess
    connection: Connection
    task: Task | None = None


@dataclass
class Workers:
    """So many processes, started when they are needed, each with its share of the cores."""

    jobs: int
    threads: int
    _all: list[Worker] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._all:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._all.clear()

    @property
    def has_room(self) -> bool:
        return sum(worker.task is not None for worker in self._all) < self.jobs

    @property
    def num_busy(self) -> int:
        return sum(worker.task is not None for worker in self._all)

    def start(self, task: Task) -> None:
        """Give a trial to a process that has none."""
        worker = next((one for one in self._all if one.task is None), None) or self._new()
        worker.task = task
        worker.connection.send(task)

    def answer(self, number: int, is_over: bool) -> None:
        """Tell a trial that reported a validation whether it ends here."""
        worker = next(one for one in self._all if one.task is not None and one.task.number == number)
        with suppress(BrokenPipeError):  # it died meanwhile, which the next look finds
            worker.connection.send(is_over)

    def messages(self) -> Iterator[Message]:
        """What has been said since; waits a moment where nothing was."""
        busy = {worker.connection: worker for worker in self._all if worker.task is not None}
        for connection in wait(list(busy), timeout=SECONDS_BETWEEN_LOOKS):
            worker = busy[connection]  # type: ignore[index]
            assert worker.task is not None
            number = worker.task.number
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                self._all.remove(worker)
                fault = f"its process ended with code {worker.process.exitcode}, as when memory runs out."
                yield Message("result", number, Result("failed", code="process_died", fault=fault))
                continue
            if message.kind != "validation":
                worker.task = None
            yield message

    def _new(self) -> Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, os.getpid()), daemon=True)
        with _environment(OMP_NUM_THREADS=str(self.threads), MKL_NUM_THREADS=str(self.threads)):
            process.start()
        theirs.close()
        worker = Worker(process, ours)
        self._all.append(worker)
        return worker


def how_many(wished: int, *, num_cores: int, available_bytes: int, peak_bytes: int) -> int:
    """How many trials run at once; 0 wishes one on each core, as many as memory has room for.

    Both amounts are of the device's memory where there is one. `peak_bytes` was measured with a first trial.
    """
    by_memory = int(MEMORY_SHARE * available_bytes // max(1, peak_bytes))
    return wished or max(1, min(num_cores, by_memory))


def _work(connection: Connection, parent: int) -> None:
    """The process: trials until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with suppress(EOFError, BrokenPipeError):
        while True:
            task: Task = connection.recv()
            connection.send(_run(task, connection))


def _run(task: Task, connection: Connection) -> Message:
    def report(validation: int, loss: float) -> bool:
        connection.send(Message("validation", task.number, (validation, loss)))
        return bool(connection.recv())

    try:
        return Message("result", task.number, run_trial(task, report))
    except (EOFError, BrokenPipeError):
        raise
    except UserError as fault:
        values = {"code": fault.code, "where": fault.where, "remedy": fault.remedy}
        return Message("fault", task.number, (fault.message, values))
    except Exception:  # a bug is told by the process that can write its log
        return Message("fault", task.number, (traceback.format_exc(), {}))


def _end_with(parent: int) -> None:
    """A parent that was killed cannot end its workers: they look for it."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """The environment that a process inherits when it is started within."""
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

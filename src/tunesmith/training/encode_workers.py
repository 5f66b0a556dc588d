"""Tokenise in several processes: chunks of examples go out by pipes, arrays come back, in their order.

Workers are plain subprocesses that import nothing of the calling program, so a script without a `__main__` guard and a
notebook work alike. They end when their input does, that is, with the process that started them, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from tunesmith.core.errors import UserError
from tunesmith.core.records import Example
from tunesmith.training.encode import Encoding
from tunesmith.training.token_store import Chunk

_PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "  # Ctrl-C is the parent's to notice
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from tunesmith.training.encode_workers import serve; serve()"
)
WAITING = 2
"""Chunks that wait for each worker, so that none is idle while the last result is written down."""


def encoded(chunks: Iterable[Sequence[Example]], encoding: Encoding, num_workers: int) -> Iterator[Chunk]:
    """Each chunk encoded, in order, by so many processes.

    Raises:
        UserError: An example cannot be encoded, or a worker was killed.
    """
    with ExitStack() as stack:
        free: SimpleQueue[Worker] = SimpleQueue()
        for _ in range(num_workers):
            free.put(stack.enter_context(Worker(encoding)))
        threads = stack.enter_context(ThreadPoolExecutor(num_workers))

        def ask(chunk: Sequence[Example]) -> Chunk:
            worker = free.get()
            try:
                return worker.ask(chunk)
            finally:
                free.put(worker)

        asked: deque[Future[Chunk]] = deque()
        try:
            for chunk in chunks:
                asked.append(threads.submit(ask, chunk))
                if len(asked) > num_workers * WAITING:
                    yield asked.popleft().result()
            while asked:
                yield asked.popleft().result()
        finally:
            for future in asked:
                future.cancel()


def can_travel(encoding: Encoding) -> bool:
    """Whether the tokenizer and the objective can be sent to another process."""
    try:
        pickle.dumps(encoding)
    except (pickle.PicklingError, TypeError, AttributeError):
        return False
    return True


class Worker:
    """One process with an encoding."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def __enter__(self) -> Worker:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self._output: IO[bytes] = self._process.stdout
        self._is_told = False
        return self

    def __exit__(self, *fault: object) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()
        with contextlib.suppress(BrokenPipeError):  # it died with something unsent, which was raised before
            self._input.close()

    def ask(self, chunk: Sequence[Example]) -> Chunk:
        """The chunk encoded.

        Raises:
            UserError: An example cannot be encoded, or the process was killed.
        """
        try:
            if not self._is_told:
                pickle.dump([path for path in sys.path if path] + [str(Path.cwd())], self._input)
                pickle.dump(self._encoding, self._input)
                self._is_told = True
            pickle.dump(list(chunk), self._input)
            self._input.flush()
            kind, found = pickle.load(self._output)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            code = self._process.wait()
            raise UserError(
                f"a process that tokenises ended with code {code}, as when memory runs out.",
                code="worker_killed",
                remedy="Start again; with TUNESMITH_TOKENISERS=1 it is done in one process.",
            ) from None
        if kind == "fault":
            raise UserError(found["message"], code=found["code"], where=found["where"], remedy=found["remedy"])
        assert isinstance(found, Chunk), (kind, found)
        return found


def serve() -> None:
    """What a worker does: encode what comes in until nothing more does."""
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library's words must not get between the results
    encoding: Encoding = pickle.load(sys.stdin.buffer)
    while True:
        try:
            chunk = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: tuple[str, Any]
        try:
            answer = ("chunk", encoding.chunk(chunk))
        except UserError as fault:
            answer = ("fault", fault.to_dict())
        pickle.dump(answer, results, protocol=pickle.HIGHEST_PROTOCOL)
        results.flush()

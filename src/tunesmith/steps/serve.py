"""Serve models with OpenAI's API: `serve` until a signal ends it, `start` beside other work.

This is where a server is put together, so this step (alone) imports `tunesmith.server`, inside its functions.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tunesmith.core.errors import Interrupted, UserError
from tunesmith.core.events import Emit, Finished, Progress, Started, Warning, silent
from tunesmith.core.home import Home
from tunesmith.core.store import Store
from tunesmith.steps.served import Loading, Served, Source, find_source, name_models, open_model

if TYPE_CHECKING:
    from tunesmith.server.listener import Stop
    from tunesmith.server.settings import ServerSettings

PORT = 8321
STEP = "serve"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Address:
    """Where a server listens and what it serves."""

    url: str
    models: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `--json` gives it."""
        return {"url": self.url, "base_url": f"{self.url}/v1", "models": list(self.models)}


class RunningServer:
    """A server on a thread of this process. As a context manager it stops at the end of the block."""

    def __init__(self, address: Address, loop: asyncio.AbstractEventLoop, stop: Stop, thread: threading.Thread) -> None:
        self.address = address
        self._loop = loop
        self._stop = stop
        self._thread = thread

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without `/v1`."""
        return self.address.url

    @property
    def models(self) -> tuple[str, ...]:
        """The names it answers to."""
        return self.address.models

    def client(self) -> Any:
        """The official `openai` client, ready to ask.

        Raises:
            UserError: The package is not installed.
        """
        try:
            from openai import OpenAI
        except ImportError:
            raise UserError(
                "the client needs a package.", code="missing_package", remedy="pip install 'tunesmith[client]'"
            ) from None
        return OpenAI(base_url=f"{self.url}/v1", api_key="none")

    def stop(self) -> None:
        """Finish what is in flight and end; safe to call twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.asked.set)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def serve(
    home: Home,
    refs: Sequence[str],
    *,
    port: int = PORT,
    settings: ServerSettings | None = None,
    emit: Emit = silent,
    on_ready: Callable[[Address], None] = lambda address: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in flight are finished first.

    Raises:
        UserError: A model cannot be served, or the port is taken.
        Interrupted: A second signal ended it before that.
    """
    begin = time.monotonic()
    server = _Server(home, refs, port, settings, emit)

    async def until_signal() -> None:
        from tunesmith.server.listener import Stop

        stop, loop = Stop(), asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, server.on_signal, stop)
        try:
            await server.run(stop, on_ready)
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
        if stop.now.is_set():
            raise Interrupted("the server was ended at once; answers in flight were cut off.")

    asyncio.run(until_signal())
    emit(Finished(STEP, "stopped; every request in flight was answered", seconds=time.monotonic() - begin))


def start(
    home: Home,
    refs: Sequence[str],
    *,
    port: int = 0,
    settings: ServerSettings | None = None,
    emit: Emit = silent,
) -> RunningServer:
    """A server on a thread of its own, ready to be asked; port 0 takes any that is free.

    Raises:
        UserError: A model cannot be served, or the port is taken.
    """
    server = _Server(home, refs, port, settings, emit)
    started: dict[str, Any] = {}
    is_ready = threading.Event()

    async def until_stopped() -> None:
        from tunesmith.server.listener import Stop

        started["stop"], started["loop"] = Stop(), asyncio.get_running_loop()
        await server.run(started["stop"], lambda address: is_ready.set())

    def work() -> None:
        try:
            asyncio.run(until_stopped())
        finally:
            is_ready.set()

    thread = threading.Thread(target=work, name="tunesmith-server", daemon=True)
    thread.start()
    is_ready.wait()
    return RunningServer(server.address, started["loop"], started["stop"], thread)


class _Server:
    """The parts of one server, from its references."""

    def __init__(self, home: Home, refs: Sequence[str], port: int, settings: ServerSettings | None, emit: Emit) -> None:
        from tunesmith.server.app import create_app
        from tunesmith.server.boundary import is_loopback
        from tunesmith.server.catalog import Catalog
        from tunesmith.server.engine import Engine, Limits
        from tunesmith.server.listener import bind, listener_for
        from tunesmith.server.monitor import Monitor
        from tunesmith.server.settings import ServerSettings

        if not refs:
            raise UserError("name at least one model to serve.", code="no_model", remedy="tunesmith models list")
        self.settings = settings or ServerSettings()
        self.home, self.refs, self.emit = home, tuple(dict.fromkeys(refs)), emit
        self.socket = bind(self.settings.host, port)
        if not is_loopback(self.settings.host):
            text = f"anybody who can reach {self.settings.host}:{port} may use this server: it asks for no key"
            emit(Warning(STEP, "open_to_all", text))
        from tunesmith.models.sharing import SharedBases  # brings torch: a port in use is said before that

        self.bases = SharedBases()
        self.opened: dict[str, tuple[str, Served]] = {}
        self._refused: set[str] = set()
        try:
            self.store = Store.open(home)
            served = self._open_all()
        except BaseException:
            self.socket.close()
            raise
        limits = Limits(self.settings.max_running, self.settings.max_waiting, self.settings.token_budget)
        self.catalog = Catalog(served)
        self.engine = Engine(Monitor(), limits)
        self.listener = listener_for(create_app(self.catalog, self.engine, self.store, self.settings))
        self.address = Address(_url(self.socket), tuple(name for one in served for name in one.names))

    async def run(self, stop: Stop, on_ready: Callable[[Address], None]) -> None:
        """Serve until told to stop."""
        from tunesmith.server.listener import run

        def ready() -> None:
            lines = (("url", self.address.url), ("models", ", ".join(self.address.models)))
            self.emit(Started(STEP, "ready", {"url": self.address.url}, lines))
            on_ready(self.address)

        try:
            await run(self.listener, self.socket, self.engine, self.settings, stop, beside=self._follow, on_ready=ready)
        finally:
            self.store.close()

    def on_signal(self, stop: Stop) -> None:
        """SIGTERM or Ctrl-C."""
        is_first = not stop.asked.is_set()
        stop.ask()
        if is_first:
            seconds = f"{self.settings.drain_seconds:.0f} s"
            text = f"finishing requests in flight (at most {seconds}); again to stop now"
            self.emit(Warning(STEP, "stopping", text, {"running": self.engine.num_running}))

    def _open_all(self) -> tuple[Served, ...]:
        for done, reference in enumerate(self.refs):
            self.emit(Progress(STEP, done, len(self.refs), label=f"load and try {reference}"))
            source = find_source(self.home, self.store, reference)
            self.opened[reference] = source.key, self._open(source)
        self._refuse_same_names()
        return self._named()

    def _open(self, source: Source, loading: Loading = nullcontext) -> Served:
        for key, one in self.opened.values():
            if key == source.key:
                return one
        return open_model(source, self.bases, emit=self.emit, step=STEP, loading=loading)

    def _named(self) -> tuple[Served, ...]:
        return name_models({reference: one for reference, (_, one) in self.opened.items()}, self.store)

    def _refuse_same_names(self) -> None:
        seen: dict[str, str] = {}
        for key, one in self.opened.values():
            if seen.setdefault(one.reference, key) != key:
                raise UserError(
                    f'two different models would both be called "{one.reference}".',
                    code="same_name",
                    remedy="Register one of them under another name: tunesmith models register RUN NAME",
                )

    async def _follow(self) -> None:
        """Serve what names and aliases point at, as they move."""
        while True:
            await asyncio.sleep(self.settings.follow_seconds)
            await asyncio.to_thread(self._refresh)

    def _refresh(self) -> None:
        """One look at the registry; a new version that cannot be served leaves the former in its place."""
        for reference in self.refs:
            try:
                source = find_source(self.home, self.store, reference)
                if source.key != self.opened[reference][0] and source.key not in self._refused:
                    self._refused.add(source.key)
                    self.opened[reference] = source.key, self._open(source, self.engine.paused)
                    self._refused.discard(source.key)
                    text = f"{reference} is {self.opened[reference][1].reference} now"
                    self.emit(Warning(STEP, "alias_moved", text))
            except UserError as fault:
                if fault.line() not in self._refused:
                    self._refused.add(fault.line())
                    self.emit(Warning(STEP, fault.code, f"{reference} stays as it was: {fault.line()}"))
        try:
            named = self._named()
        except UserError:
            return  # /readyz says what is wrong with the database
        if [one.names for one in named] != [one.names for one in self.catalog.served]:
            self.catalog.replace(named)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"

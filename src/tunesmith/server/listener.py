"""The socket, uvicorn on it, and an orderly end.

At the first signal the server turns new requests away (503, and `/readyz` says so) while it still listens; those in
flight have `drain_seconds`, then the rest end with an error. A second signal ends everything now. uvicorn's own
signal handling would close the socket first, so it is switched off.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterator

import h11
import psutil
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.core.errors import UserError
from tunesmith.server.engine import Engine
from tunesmith.server.errors import ApiError
from tunesmith.server.limits import MAX_HEADER_BYTES
from tunesmith.server.settings import ServerSettings

CLOSE_SECONDS = 5
"""How long the last bytes of answers may take to be sent."""


class Listener(uvicorn.Server):
    """uvicorn without its signal handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class Protocol(H11Protocol):
    """HTTP/1.1 whose refusal of what is no HTTP, or has headers without end, has OpenAI's envelope too."""

    def send_400_response(self, msg: str) -> None:
        """Answer and close; the app never hears of such a request."""
        error = ApiError(400, msg.rstrip(".") + "; its headers are malformed or too long.", code="invalid_http")
        body = json.dumps(error.body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", f"req_{secrets.token_hex(12)}".encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Stop:
    """How the server is told to end, from its own loop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.now = asyncio.Event()

    def ask(self) -> None:
        """First: finish what is in flight. Again: end now."""
        (self.now if self.asked.is_set() else self.asked).set()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address; port 0 takes any that is free.

    Raises:
        UserError: The port is taken (by whom, if that can be seen), not allowed, or the host is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as fault:
        raise UserError(f"the host is not known: {fault.strerror}.", code="bad_host", where=host) from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1024)
    except OSError as fault:
        listener.close()
        raise _cannot_bind(fault, host, port) from None
    return listener


def listener_for(app: FastAPI) -> Listener:
    """uvicorn with limits: h11, because only there the size of headers is bounded."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    return Listener(config)


async def run(
    listener: Listener,
    sock: socket.socket,
    engine: Engine,
    settings: ServerSettings,
    stop: Stop,
    *,
    beside: Callable[[], Awaitable[None]],
    on_ready: Callable[[], None],
) -> None:
    """Serve until `stop` asks for the end; `beside` runs along and is cancelled then."""
    serving = asyncio.create_task(listener.serve(sockets=[sock]))
    asked = asyncio.create_task(stop.asked.wait())
    along = asyncio.ensure_future(beside())
    try:
        while not listener.started and not serving.done():
            await asyncio.sleep(0.005)
        on_ready()
        await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
        engine.close()
        await _drain(engine, stop, settings.drain_seconds)
    finally:
        asked.cancel()
        along.cancel()
        await asyncio.to_thread(engine.stop)
        await asyncio.sleep(0)  # let the streams see their last events
        listener.force_exit = stop.now.is_set()
        listener.should_exit = True
        await serving


async def _drain(engine: Engine, stop: Stop, seconds: float) -> None:
    end = time.monotonic() + seconds
    while engine.num_running + engine.num_waiting and time.monotonic() < end and not stop.now.is_set():
        await asyncio.sleep(0.02)


def _cannot_bind(fault: OSError, host: str, port: int) -> UserError:
    where = f"{host}:{port}"
    if fault.errno == errno.EADDRINUSE:
        owner = _owner(port)
        by = f" by {owner}" if owner else ""
        remedy = f"Stop it, or choose another: --port {port + 1 if port < 65535 else 8321}"
        return UserError(f"port {port} is taken{by}.", code="port_in_use", where=where, remedy=remedy)
    if fault.errno == errno.EACCES:
        remedy = "Choose one above 1023, for example: --port 8321"
        return UserError(f"port {port} is not allowed for you.", code="port_forbidden", where=where, remedy=remedy)
    remedy = "Use 127.0.0.1, 0.0.0.0, or an address of this machine."
    return UserError(f"the address cannot be used: {fault.strerror}.", code="bad_host", where=where, remedy=remedy)


def _owner(port: int) -> str:
    """`process 4121 (python)`; empty where the system does not tell."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return ""

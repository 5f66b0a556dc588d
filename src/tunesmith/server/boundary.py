"""The outermost layer: an id for every request, Host and Origin checked, every request counted, no bug shown.

It is plain ASGI, so that streams pass through it untouched.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.server.errors import ApiError, internal_error
from tunesmith.server.limits import MAX_HEADER_BYTES
from tunesmith.server.monitor import Monitor

log = logging.getLogger("tunesmith.server")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Boundary:
    """Wraps the app. `hosts` are the names under which it may be called; empty means any."""

    def __init__(self, app: ASGIApp, *, monitor: Monitor, hosts: frozenset[str]) -> None:
        self.app = app
        self.monitor = monitor
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["id"] = secrets.token_hex(12)
        state["finish_reason"] = ""
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *_headers(state["id"])]}
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal:
                await refusal.response()(scope, receive, send_named)
            else:
                await self.app(scope, receive, send_named)
        except ApiError as error:
            if not status:
                await error.response()(scope, receive, send_named)
        except Exception:
            log.exception("request req_%s failed", state["id"])
            if not status:
                await internal_error().response()(scope, receive, send_named)
        finally:
            endpoint = getattr(scope.get("route"), "path", "other")
            self.monitor.count_request(endpoint, status or 499, state["finish_reason"])

    def _refusal(self, scope: Scope) -> ApiError | None:
        """Headers without end; and pages of other sites, for the server trusts everybody who can reach it."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            # h11 has the same limit, but only while headers are incomplete
            message = f"The headers are larger than {MAX_HEADER_BYTES:,} bytes."
            return ApiError(431, message, code="headers_too_large", headers={"connection": "close"})
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not self.hosts:
            return None
        host = _host_name("//" + headers.get(b"host", b"").decode("latin-1"))
        if host not in self.hosts:
            return ApiError(403, "This server does not answer under that host name.", code="wrong_host")
        origin = headers.get(b"origin")
        if origin is not None and _host_name(origin.decode("latin-1")) not in self.hosts:
            return ApiError(403, "Pages of other origins may not call this server.", code="wrong_origin")
        return None


def allowed_hosts(host: str) -> frozenset[str]:
    """The names under which a server bound to `host` is called: loopback only by loopback names, else any."""
    return LOOPBACK if is_loopback(host) else frozenset()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    return host in LOOPBACK


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _headers(identity: str) -> list[tuple[bytes, Any]]:
    return [(b"x-request-id", f"req_{identity}".encode()), (b"x-content-type-options", b"nosniff")]

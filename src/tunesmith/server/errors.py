"""Errors as OpenAI's API gives them: `{"error": {message, type, param, code}}`, for every status.

The official client retries 408, 409, 429 and all 5xx; `x-should-retry: false` tells it when that is useless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tunesmith.core.errors import UserError

MAX_ECHO = 200
"""Longest piece of the caller's own input that an error repeats, in characters."""
MAX_FAULTS = 10

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
PHRASES = {
    404: "There is nothing at this address.",
    405: "This address does not answer that method.",
}


class ApiError(Exception):
    """A refusal with its HTTP status; `is_final` says that sending the same again cannot help."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        is_final: bool | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.is_final = (status == 409 or status >= 500) if is_final is None else is_final
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The envelope."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status, fallback)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as an answer."""
        headers = dict(self.headers)
        if self.is_final and (self.status == 409 or self.status >= 500):
            headers["x-should-retry"] = "false"
        return JSONResponse(self.body(), status_code=self.status, headers=headers)


def internal_error() -> ApiError:
    """What a caller learns of a bug: that it happened. The rest is in the server's log, under the request's id."""
    return ApiError(500, "The server failed on this request; its log says why.", code="internal_error")


def echo(value: object) -> str:
    """The caller's input, short enough to repeat."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_ECHO else text[: MAX_ECHO - 1] + "…"


def install_handlers(app: FastAPI) -> None:
    """Give every fault of the framework our envelope; FastAPI's own has a bare `detail`."""

    async def on_api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = PHRASES.get(error.status_code, str(error.detail))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return ApiError(error.status_code, message, code=code, headers=error.headers).response()

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return invalid(error.errors()).response()

    async def on_user_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, UserError)
        message = f"{error.message} {error.remedy}".strip()
        return ApiError(400, message, code=error.code).response()

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(UserError, on_user_error)


def invalid(faults: Sequence[Any]) -> ApiError:
    """A 400 from pydantic's list of faults: at most ten, each with its place and a short echo of the input."""
    lines = []
    for fault in faults[:MAX_FAULTS]:
        place = _place(fault["loc"])
        message = str(fault["msg"]).removeprefix("Value error, ")
        given = "" if fault["type"] == "missing" else f" (given: {echo(fault.get('input'))})"
        lines.append(f"{place}: {message}{given}" if place else f"{message}{given}")
    more = len(faults) - MAX_FAULTS
    if more > 0:
        lines.append(f"and {more} more")
    param = _place(faults[0]["loc"]) or None
    return ApiError(400, "; ".join(lines), code="invalid_value", param=param)


def _place(location: Any) -> str:
    """`messages[0].content` from pydantic's path; names of union branches are left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "body" and "[" not in part and part not in ("str", "int", "float", "bool", "function-wrap()"):
            text += f".{part}" if text else part
    return echo(text)

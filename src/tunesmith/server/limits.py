"""What a request may be: its type, size, time and JSON. Bodies are read here, not by FastAPI.

So the limits hold while bytes arrive, and NaN, infinity and nesting without end are refused before anything looks
at the values.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import pydantic_core
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from tunesmith.server.errors import ApiError, invalid

M = TypeVar("M", bound=BaseModel)
MAX_HEADER_BYTES = 64 * 1024
BODY_SECONDS = 30.0


async def read_model(request: Request, model: type[M], *, max_bytes: int) -> M:
    """The body as `model`.

    Raises:
        ApiError: 400, 408, 413 or 415.
    """
    values = await read_json(request, max_bytes=max_bytes)
    if not isinstance(values, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    try:
        return model.model_validate(values, strict=True)
    except ValidationError as fault:
        raise invalid(fault.errors(include_url=False, include_context=False)) from None


async def read_json(request: Request, *, max_bytes: int) -> Any:
    """The body's value; only strict JSON is taken."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "The body must have the content type application/json.", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Compressed bodies are not read; send the JSON as it is.", code="unsupported_media_type")
    body = await _read_body(request, max_bytes)
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as fault:
        raise ApiError(400, f"The body is not JSON: {fault}.", code="invalid_json") from None


async def _read_body(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        message = f"The body did not arrive within {BODY_SECONDS:.0f} seconds."
        raise ApiError(408, message, code="request_timeout", headers={"connection": "close"}) from None
    except ClientDisconnect:
        raise ApiError(400, "The client left before its request was complete.", code="client_left") from None
    return bytes(body)


def _too_large(max_bytes: int) -> ApiError:
    message = f"The body is larger than {max_bytes:,} bytes."
    return ApiError(413, message, code="request_too_large", headers={"connection": "close"})

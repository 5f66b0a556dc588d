"""Whether the server lives, whether it is ready, and its numbers."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from tunesmith.server.errors import ApiError
from tunesmith.server.service import Service


def health_routes(service: Service) -> APIRouter:
    """`/livez`, `/readyz`, `/metrics`."""
    router = APIRouter()

    @router.get("/livez")
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        troubles = await run_in_threadpool(service.troubles)
        if not troubles:
            return JSONResponse({"status": "ready"})
        message = "; ".join(f"{part}: {trouble}" for part, trouble in troubles.items())
        error = ApiError(503, message, code="not_ready", is_final=False)
        body = {"status": "not ready", "troubles": troubles, **error.body()}
        return JSONResponse(body, status_code=503, headers={"retry-after": "1"})

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        body, kind = service.monitor.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": kind})

    return router

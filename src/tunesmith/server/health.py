"""Whether the server lives, whether it is ready, and its numbers."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

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
        return JSONResponse({"status": "not ready", "troubles": troubles}, status_code=503)

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        body, kind = service.monitor.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": kind})

    return router

"""Judgements of answers: a thumb, a value, a correction; given again by the same rater, the newest counts.

Corrections become training data only where the request's text was kept (`tunesmith serve --keep-text`).
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from tunesmith.core.errors import UserError
from tunesmith.core.store import FeedbackRow
from tunesmith.server.errors import ApiError
from tunesmith.server.limits import read_model
from tunesmith.server.requests import FeedbackRequest
from tunesmith.server.service import Service

THUMBS = {True: "up", False: "down"}


def feedback_routes(service: Service) -> APIRouter:
    """`POST /v1/feedback`."""
    router = APIRouter()

    @router.post("/v1/feedback")
    async def feedback(request: Request) -> JSONResponse:
        body = await read_model(request, FeedbackRequest, max_bytes=service.settings.max_body_bytes)
        row = FeedbackRow(
            request=stored_id(body.request_id),
            name=body.name,
            value="corrected" if body.value is None else body.value,
            choice=body.choice,
            comment=body.comment or "",
            correction=body.correction or "",
            rater=body.rater or "",
        )
        try:
            kept = await run_in_threadpool(service.store.give_feedback, row)
        except UserError as fault:
            status = 404 if fault.code == "unknown_request" else 400
            param = "request_id" if status == 404 else "choice" if fault.code == "unknown_choice" else None
            raise ApiError(status, f"{fault.message} {fault.remedy}".strip(), code=fault.code, param=param) from None
        value = kept.value
        service.monitor.count_feedback(kept.name, THUMBS[value] if isinstance(value, bool) else str(value))
        return JSONResponse({"object": "feedback", **kept.to_dict(), "request_id": body.request_id})

    return router


def stored_id(request_id: str) -> str:
    """The id under which a request is stored, from an answer's `id` or the header `x-request-id`."""
    prefix, dash, rest = request_id.partition("-")
    if dash and prefix in ("chatcmpl", "cmpl"):
        return rest
    return request_id.removeprefix("req_")

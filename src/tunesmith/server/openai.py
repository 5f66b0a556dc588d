"""The routes that OpenAI's clients know: models, chat completions, completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from tunesmith.core.records import Message
from tunesmith.server.catalog import entry
from tunesmith.server.errors import ApiError
from tunesmith.server.exchange import Exchange
from tunesmith.server.limits import read_model
from tunesmith.server.requests import ChatRequest, CompletionRequest
from tunesmith.server.service import Service
from tunesmith.steps.served import Served


def openai_routes(service: Service) -> APIRouter:
    """`/v1/models`, `/v1/chat/completions`, `/v1/completions`."""
    router = APIRouter()
    catalog, max_bytes = service.catalog, service.settings.max_body_bytes

    @router.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": catalog.entries()})

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> JSONResponse:
        return JSONResponse(entry(catalog.find(model), model))

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await read_model(request, ChatRequest, max_bytes=max_bytes)
        served = catalog.find(body.model)
        messages = tuple(message.to_message() for message in body.messages)
        if not served.can_chat:
            message = f'"{served.reference}" maps a source to a target; ask it through /v1/completions.'
            raise ApiError(400, message, code="no_chat", param="model")
        prompt = await run_in_threadpool(served.encode_chat, messages)
        return await Exchange(service, request, served, body, [prompt], messages).respond()

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await read_model(request, CompletionRequest, max_bytes=max_bytes)
        served = catalog.find(body.model)
        prompts = await run_in_threadpool(_encode, served, body)
        messages = tuple(Message("user", served.text_of(prompt)) for prompt in body.prompts)
        return await Exchange(service, request, served, body, prompts, messages).respond()

    return router


def _encode(served: Served, body: CompletionRequest) -> list[list[int]]:
    prompts = []
    for prompt in body.prompts:
        if isinstance(prompt, str):
            ids = served.encode_text(prompt)
        else:
            ids = list(prompt)
            wrong = next((token for token in ids if token >= served.vocabulary_size), None)
            if wrong is not None:
                message = f"The token id {wrong} is not in the vocabulary of {served.vocabulary_size:,} tokens."
                raise ApiError(400, message, code="invalid_value", param="prompt")
        if not ids:
            raise ApiError(400, "The prompt has no token.", code="invalid_value", param="prompt")
        prompts.append(ids)
    return prompts

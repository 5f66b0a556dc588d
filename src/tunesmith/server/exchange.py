"""One request for text, from its prompts to its answer, whole or streamed, and the record of it.

Everything that can be refused is refused before a header is sent: prompts are encoded, the queue is passed and the
first token computed; only then does a stream begin with status 200.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from tunesmith.core.records import Message
from tunesmith.core.store import RequestRow
from tunesmith.server.answers import Answer, Reply
from tunesmith.server.engine import Job, Step, Ticket
from tunesmith.server.errors import ApiError, internal_error
from tunesmith.server.requests import ChatRequest, CompletionRequest
from tunesmith.server.service import Service
from tunesmith.server.streaming import DONE, ClientLeft, EventStream, event, unless_left
from tunesmith.steps.served import Served

log = logging.getLogger("tunesmith.server")
COMPLETION_TOKENS = 16
"""OpenAI's default length of a plain completion."""
LEFT = "abort"
"""The finish reason of an answer whose client left; only metrics and the store see it."""


@dataclass
class Exchange:
    """One request and what came of it so far."""

    service: Service
    request: Request
    served: Served
    body: ChatRequest | CompletionRequest
    prompts: Sequence[Sequence[int]]
    messages: tuple[Message, ...]
    """What was asked, for the record; kept only where the user turned that on."""
    answers: list[Answer] = field(default_factory=list)
    first_token_seconds: float | None = None
    begin: float = field(default_factory=time.monotonic)
    is_recorded: bool = False

    async def respond(self) -> Response:
        """The answer.

        Raises:
            ApiError: It was refused, or failed before its first byte.
        """
        jobs = self._jobs()
        self.answers = [Answer() for _ in jobs]
        ticket = self.service.engine.submit(jobs)
        try:
            if self.body.stream:
                return await self._stream(ticket)
            await unless_left(self.request, self._gather(ticket))
        except ClientLeft:
            ticket.cancel()
            await self._record(LEFT, status=499)
            return Response(status_code=499)  # nobody reads it
        except BaseException:
            ticket.cancel()
            raise
        await self._record()
        return JSONResponse(self._reply.whole(self.answers))

    @property
    def is_chat(self) -> bool:
        """Whether it came by the chat endpoint."""
        return isinstance(self.body, ChatRequest)

    @property
    def _reply(self) -> Reply:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return Reply(
            id=f"{prefix}-{self.request.state.id}",
            created=self._created,
            model=self.served.reference,
            is_chat=self.is_chat,
            num_prompt_tokens=self._num_prompt_tokens,
            has_logprobs=self.body.num_logprobs is not None,
        )

    def __post_init__(self) -> None:
        self._created = int(time.time())
        self._num_prompt_tokens = sum(len(prompt) for prompt in self.prompts)

    def _jobs(self) -> list[Job]:
        """The sequences: every prompt `n` times, choice i with the seed plus i."""
        body, served = self.body, self.served
        seed = secrets.randbits(62) if body.seed is None else body.seed
        jobs: list[Job] = []
        for prompt in self.prompts:
            room = served.room(len(prompt))
            if room < 1:
                raise self._too_long(len(prompt))
            default = served.generate.max_new_tokens if self.is_chat else COMPLETION_TOKENS
            limit = min(body.limit or default, room)
            for _ in range(body.n or 1):
                sampling = served.sampling(body, max_new_tokens=limit, seed=seed + len(jobs))
                jobs.append(Job(served.reference, served.opener(prompt, sampling), len(prompt) + limit))
        return jobs

    def _too_long(self, num_tokens: int) -> ApiError:
        context = self.served.context_length
        return ApiError(
            400,
            f"The prompt has {num_tokens:,} tokens and the model's context is {context:,}, answer included. "
            "Shorten the prompt.",
            code="context_length_exceeded",
            param="messages" if self.is_chat else "prompt",
        )

    def _take(self, step: Step) -> Answer:
        if self.first_token_seconds is None:
            self.first_token_seconds = time.monotonic() - self.begin
        answer = self.answers[step.index]
        answer.add(step.piece)
        return answer

    async def _gather(self, ticket: Ticket) -> None:
        async for step in ticket.steps():
            self._take(step)

    async def _stream(self, ticket: Ticket) -> Response:
        steps = ticket.steps()
        first = await unless_left(self.request, _first(steps))
        return EventStream(
            self._events(first, steps),
            keep_alive_seconds=self.service.settings.keep_alive_seconds,
            on_end=ticket.cancel,
        )

    async def _events(self, first: Step, steps: AsyncIterator[Step]) -> AsyncIterator[bytes]:
        finish = LEFT
        try:
            async for chunk in self._chunks(first, steps):
                yield event(chunk)
            await self._record()
            finish = ""
            if self.body.stream_options and self.body.stream_options.include_usage:
                yield event(self._reply.usage_chunk(self.answers))
        except ApiError as error:
            finish = "error"
            yield event(error.body())
        except Exception:
            finish = "error"
            log.exception("the stream of req_%s failed", self.request.state.id)
            yield event(internal_error().body())
        finally:
            if finish:
                self._record_now(finish, 200)
        yield DONE

    async def _chunks(self, first: Step, steps: AsyncIterator[Step]) -> AsyncIterator[dict[str, Any]]:
        reply = self._reply
        has_usage = bool(self.body.stream_options and self.body.stream_options.include_usage)
        rest = {"usage": None} if has_usage else {}
        for index in range(len(self.answers)):
            opening = reply.first(index)
            if opening:
                yield opening | rest
        async for step in _with_first(first, steps):
            answer = self._take(step)
            if step.piece.text or (step.piece.finish_reason and answer.has_unsent):
                yield reply.piece(step.index, answer, step.piece.text) | rest
            if step.piece.finish_reason:
                yield reply.last(step.index, answer) | rest

    async def _record(self, finish: str = "", status: int = 200) -> None:
        await run_in_threadpool(self._record_now, finish, status)

    def _record_now(self, finish: str, status: int) -> None:
        """Count the request and keep its metadata, once; before the caller has its last byte, so that it may judge."""
        if self.is_recorded:
            return
        self.is_recorded = True
        service, seconds = self.service, time.monotonic() - self.begin
        finish = finish or next((a.finish_reason for a in self.answers if a.finish_reason), "")
        generated = sum(answer.num_tokens for answer in self.answers)
        self.request.state.finish_reason = finish
        monitor = service.monitor
        monitor.prompt_tokens.inc(self._num_prompt_tokens)
        monitor.generation_tokens.inc(generated)
        monitor.request_prompt.observe(self._num_prompt_tokens)
        monitor.request_generation.observe(generated)
        monitor.latency.observe(seconds)
        monitor.count_adapter(self.served.reference)
        keeps = service.settings.keep_text
        service.record(
            RequestRow(
                id=self.request.state.id,
                model=self.served.name,
                version=self.served.version,
                endpoint=self.request.url.path,
                status=status,
                finish_reason=finish,
                num_choices=len(self.answers),
                num_prompt_tokens=self._num_prompt_tokens,
                num_answer_tokens=generated,
                seconds=seconds,
                first_token_seconds=self.first_token_seconds,
                messages=tuple(message.to_dict() for message in self.messages) if keeps else None,
                answers=tuple(answer.text for answer in self.answers) if keeps else None,
            )
        )


async def _first(steps: AsyncIterator[Step]) -> Step:
    return await anext(steps)


async def _with_first(first: Step, steps: AsyncIterator[Step]) -> AsyncIterator[Step]:
    yield first
    async for step in steps:
        yield step

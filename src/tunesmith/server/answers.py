"""Answers in OpenAI's shape, whole or in chunks, from the pieces that the engine gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.models.sample import Piece, TokenLogprob

LOWEST_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON cannot write."""


@dataclass
class Answer:
    """One choice as it grows."""

    text: str = ""
    finish_reason: str = ""
    num_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_sent: int = 0
    """Log-probabilities already given out in chunks."""

    def add(self, piece: Piece) -> None:
        """Take in the next piece."""
        self.text += piece.text
        self.num_tokens += len(piece.token_ids)
        self.logprobs.extend(piece.logprobs or ())
        self.finish_reason = piece.finish_reason or self.finish_reason

    @property
    def has_unsent(self) -> bool:
        """Whether log-probabilities wait for a chunk."""
        return self.num_sent < len(self.logprobs)

    def unsent(self) -> list[TokenLogprob]:
        """Log-probabilities that no chunk has carried yet."""
        new = self.logprobs[self.num_sent :]
        self.num_sent = len(self.logprobs)
        return new


@dataclass(frozen=True)
class Reply:
    """What is the same in every chunk of an answer, and how it is written."""

    id: str
    created: int
    model: str
    is_chat: bool
    num_prompt_tokens: int
    has_logprobs: bool

    @property
    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "created": self.created, "model": self.model}

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The answer of a request without `stream`."""
        choices = []
        for index, answer in enumerate(answers):
            logprobs = self._logprobs(answer.logprobs, 0) if self.has_logprobs else None
            choice = {"index": index, "logprobs": logprobs, "finish_reason": answer.finish_reason}
            if self.is_chat:
                choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
            else:
                choice["text"] = answer.text
            choices.append(choice)
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self.usage(answers)}

    def first(self, index: int) -> dict[str, Any] | None:
        """The chunk that opens a choice; plain completions have none."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}) if self.is_chat else None

    def piece(self, index: int, answer: Answer, text: str) -> dict[str, Any]:
        """A chunk with the next text, and the log-probabilities gathered since the last."""
        offset = len(answer.text) - len(text)
        new = answer.unsent()
        logprobs = self._logprobs(new, offset) if self.has_logprobs else None
        body: dict[str, Any] = {"delta": {"content": text}} if self.is_chat else {"text": text}
        return self._chunk(index, body, logprobs=logprobs)

    def last(self, index: int, answer: Answer) -> dict[str, Any]:
        """The chunk that closes a choice."""
        body: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": ""}
        return self._chunk(index, body, finish_reason=answer.finish_reason)

    def usage_chunk(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The chunk before `[DONE]` that `stream_options.include_usage` asks for."""
        return {**self._head, "object": self._chunk_kind, "choices": [], "usage": self.usage(answers)}

    def usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        """Tokens read and written."""
        generated = sum(answer.num_tokens for answer in answers)
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.num_prompt_tokens + generated,
        }

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _chunk(
        self, index: int, body: Mapping[str, Any], *, logprobs: Any = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, **body, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "object": self._chunk_kind, "choices": [choice]}

    def _logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        return chat_logprobs(tokens) if self.is_chat else completion_logprobs(tokens, offset)


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The shape of /v1/chat/completions."""
    content = [{**_token(token), "top_logprobs": [_token(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The shape of /v1/completions; `offset` is where the first token begins in the text."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [{other.text: _finite(other.logprob) for other in token.top} for token in tokens],
        "text_offset": offsets,
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    is_whole = "\ufffd" not in token.text  # a part of a code point has no text of its own
    return {
        "token": token.text,
        "logprob": _finite(token.logprob),
        "bytes": list(token.text.encode()) if is_whole else None,
    }


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)

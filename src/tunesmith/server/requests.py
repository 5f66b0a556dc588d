"""What a caller may ask for, in OpenAI's shape: bounds are checked here, unknown fields are ignored (SDKs add some).

A field that OpenAI knows and Tunesmith does not carry out yet is refused when it is set to more than its default:
an answer that ignored it would be a wrong answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tunesmith.core.records import Message

MAX_CHOICES = 8
"""Answers to one request, over all of its prompts."""

T = TypeVar("T")
Text = Annotated[str, Field(max_length=2_000_000)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
MaxTokens = Annotated[int, Field(ge=1, le=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Body(BaseModel):
    """A request body."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class StreamOptions(Body):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class Part(Body):
    """A piece of a message; only text is read."""

    type: str
    text: Text | None = None

    @model_validator(mode="after")
    def _is_text(self) -> Part:
        if self.type != "text" or self.text is None:
            raise ValueError('only parts {"type": "text", "text": …} can be read')
        return self


class ChatMessage(Body):
    """One turn; `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=1000)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing")
        return self

    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""

    def to_message(self) -> Message:
        """The turn as every part of Tunesmith knows it."""
        return Message(
            role="system" if self.role == "developer" else self.role,
            content=self.text(),
            name=self.name or "",
            tool_calls=tuple(self.tool_calls or ()),
            tool_call_id=self.tool_call_id or "",
        )


class Generation(Body):
    """What both endpoints share."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    max_tokens: MaxTokens | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = None

    @model_validator(mode="after")
    def _streams_with_options(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream: true")
        return self

    @field_validator("logit_bias", mode="after")
    @classmethod
    def _without_bias(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        return _refuse(value, "logit_bias is not supported yet")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, at most four."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """The most tokens to generate, None where the caller left it open."""
        return self.max_tokens


class ChatRequest(Generation):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None

    @model_validator(mode="after")
    def _asks_for_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only allowed with logprobs: true")
        return self

    @field_validator("tools", "functions", mode="after")
    @classmethod
    def _without_tools(cls, value: list[Any] | None) -> list[Any] | None:
        return _refuse(value, "tools are not supported yet")

    @field_validator("response_format", mode="after")
    @classmethod
    def _as_text(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return _refuse(value if value and value.get("type") != "text" else None, "only text is supported yet")

    @field_validator("modalities", mode="after")
    @classmethod
    def _in_text(cls, value: list[str] | None) -> list[str] | None:
        return _refuse([kind for kind in value or [] if kind != "text"], "only text is supported")

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to report for each token; None for no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Generation):
    """The body of /v1/completions: one prompt or several, as text or as token ids."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]],
            Field(min_length=1, max_length=MAX_CHOICES),
        ]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    @field_validator("echo", "suffix", mode="after")
    @classmethod
    def _without_echo(cls, value: bool | str | None) -> bool | str | None:
        return _refuse(value, "this is not supported")

    @model_validator(mode="after")
    def _is_bounded(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is only supported where it equals n")
        if len(self.prompts) * (self.n or 1) > MAX_CHOICES:
            raise ValueError(f"prompts times n must be at most {MAX_CHOICES}")
        return self

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """Each prompt as text or token ids."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if isinstance(self.prompt[0], int):
            return (tuple(int(token) for token in self.prompt if isinstance(token, int)),)
        return tuple(tuple(one) if isinstance(one, list) else str(one) for one in self.prompt)

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to report for each token; None for no log-probabilities at all."""
        return self.logprobs


class FeedbackRequest(Body):
    """The body of /v1/feedback."""

    request_id: Annotated[str, Field(min_length=1, max_length=128)]
    choice: Annotated[int, Field(ge=0, lt=MAX_CHOICES)] = 0
    name: Annotated[str, Field(min_length=1, max_length=64)] = "thumbs"
    value: bool | int | Annotated[float, Field(allow_inf_nan=False)] | Annotated[str, Field(max_length=1000)] | None = (
        None
    )
    comment: Annotated[str, Field(max_length=10_000)] | None = None
    correction: Annotated[str, Field(max_length=100_000)] | None = None
    rater: Annotated[str, Field(max_length=128)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> FeedbackRequest:
        if self.value is None and not self.correction:
            raise ValueError("give a value, a correction, or both")
        return self


def _refuse(value: T, message: str) -> T:
    if value:
        raise ValueError(message)
    return value

"""Messages, examples, outcomes and scores: what flows through every step.

An example is one row after a format has read it; `origin` leads back to its file and line,
`fields` keeps the columns the format did not use (facts, customer, …).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from; `line` counts from 1 (a row number where the file has no lines)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as OpenAI writes it. `weight` 0 keeps an assistant turn out of the loss."""

    role: Role
    content: str
    name: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str = ""
    weight: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """The message as chat templates and OpenAI's API take it: no empty keys."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name:
            out["name"] = self.name
        if self.tool_calls:
            out["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.tool_call_id:
            out["tool_call_id"] = self.tool_call_id
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What every kind of example has."""

    origin: Origin
    fields: Mapping[str, Any] = field(default_factory=dict)
    source_name: str = ""
    """The name of the data source it came from, where there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextExample(Example):
    """Plain text, to be continued (clm)."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatExample(Example):
    """A conversation; the assistant's turns are what is learnt (sft)."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last assistant turn."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "assistant"), default=len(self.messages))
        return self.messages[:last]

    @property
    def answer(self) -> str:
        """The last assistant turn's text, "" where there is none."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelExample(Example):
    """A text, or a pair of texts, with its class."""

    text: str
    label: str
    text_pair: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabelExample(Example):
    """A text, or a pair of texts, with the set of classes it belongs to; the set may be empty."""

    text: str
    labels: tuple[str, ...]
    """Sorted, each once."""
    text_pair: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberExample(Example):
    """A text, or a pair of texts, with a number (regression)."""

    text: str
    value: float
    text_pair: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagExample(Example):
    """The words of a text, each with its tag."""

    words: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        """The words with single spaces between them: what a model reads."""
        return " ".join(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExample(Example):
    """A source and its target text (seq2seq)."""

    source: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceExample(Example):
    """A prompt with a chosen and a rejected answer."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedExample(Example):
    """A prompt and an answer with a thumb up or down."""

    prompt: tuple[Message, ...]
    answer: str
    is_good: bool


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, for retrieval."""

    text: str
    title: str
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One answer of one predictor to one example, with its clock.

    Generating predictors fill `answer`; classifiers fill `answer` with the label's name and `probabilities`;
    likelihood passes fill `nll_nats` and `num_scored_tokens` (the reference's, summed). Regression gives its number
    as text. Where a row has several labels, `answer_labels` and `reference_labels` hold them, and the texts join them.
    """

    origin: str
    prompt: str = ""
    answer: str = ""
    reference: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    probabilities: Mapping[str, float] = field(default_factory=dict)
    answer_labels: tuple[str, ...] | None = None
    """A set of classes (sorted), or one tag per word; None where the row has one answer."""
    reference_labels: tuple[str, ...] | None = None
    nll_nats: float | None = None
    num_scored_tokens: int = 0
    num_prompt_tokens: int = 0
    num_answer_tokens: int = 0
    seconds: float = 0.0
    finish_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A metric's value over a set of rows with its bootstrap interval."""

    metric: str
    value: float
    low: float
    high: float
    num_rows: int
    higher_is_better: bool = True
    confidence: float = 0.95
    signature: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

"""Conversations as tokens by a chat template, and which of the tokens are learnt: the assistant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from tunesmith.core.errors import UserError
from tunesmith.core.records import Message
from tunesmith.data.answers import Span, find_answers
from tunesmith.data.literal import literal_spans, tokenize
from tunesmith.data.render import PLAIN_TEMPLATE, plain_messages, render, render_chat

__all__ = [
    "PLAIN_TEMPLATE",
    "EncodedChat",
    "encode_chat",
    "encode_prompt",
    "locate_answers",
    "render_chat",
    "tokenize_spans",
]


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """Token ids of a rendered conversation and which of them are learnt; `num_cut` were beyond the limit."""

    input_ids: tuple[int, ...]
    is_trained: tuple[bool, ...]
    num_cut: int = 0


def encode_chat(
    tokenizer: Any, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = (), max_length: int
) -> EncodedChat:
    """Tokens of a conversation, cut from the right at `max_length`, and which are the assistant's.

    Nothing is learnt of turns with weight 0, nor where all of the answer was cut off.

    Raises:
        UserError: The assistant's words are not to be found in the rendered text (`nothing_trained`), or as
            `render_chat`.
    """
    text, spans, literals = locate_answers(tokenizer, messages, tools=tools)
    ids, _, is_trained = tokenize_spans(tokenizer, text, spans, literals)
    num_cut = max(0, len(ids) - max_length)
    return EncodedChat(tuple(ids[:max_length]), tuple(is_trained[:max_length]), num_cut)


def encode_prompt(
    tokenizer: Any, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, list[int]]:
    """A conversation with the opening of the answer as text and as tokens: the one way to a prompt, whoever answers.

    Raises:
        UserError: As `render_chat`, or the template changes words that spell a special token.
    """
    plain, tool_list = plain_messages(tokenizer, messages, tools)
    text = render(tokenizer, plain, tool_list, True)
    return text, _tokenize(tokenizer, text, (), literal_spans(tokenizer, plain, tool_list, True, text))[0]


def tokenize_spans(
    tokenizer: Any, text: str, spans: Sequence[Span], literals: Sequence[Span] = ()
) -> tuple[list[int], list[tuple[int, int]], list[bool]]:
    """Token ids, each token's span of characters, and whether it shares a character with one of `spans`.

    Special tokens spelt within `literals` are words.
    """
    ids, offsets = _tokenize(tokenizer, text, spans, literals)
    return ids, offsets, _overlaps(offsets, spans)


class Located(NamedTuple):
    """A rendered conversation, and spans of its characters in order."""

    text: str
    spans: list[Span]
    """What is learnt."""
    literals: list[Span]
    """Words of messages that spell special tokens and are none."""


def locate_answers(tokenizer: Any, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()) -> Located:
    """The rendered text and where in it answers stand that are learnt.

    Raises:
        UserError: The assistant's words are not to be found in the rendered text (`nothing_trained`), or as
            `encode_prompt`.
    """
    plain, tool_list = plain_messages(tokenizer, messages, tools)
    text = render(tokenizer, plain, tool_list, False)
    literals = literal_spans(tokenizer, plain, tool_list, False, text)
    shift = len(plain) - len(messages)  # a system message may have been put in front
    wanted = [i + shift for i, m in enumerate(messages) if m.role == "assistant" and m.weight > 0]
    if not wanted:
        return Located(text, [], literals)
    found = find_answers(tokenizer, plain, tool_list, text)
    spans = [found[i] for i in wanted if i in found]
    if len(spans) != len(wanted):
        raise UserError(
            "the assistant's words cannot be found in what the chat template makes of this conversation.",
            code="nothing_trained",
            remedy="Use another chat template, or a conversation that it keeps whole.",
        )
    return Located(text, spans, literals)


def _tokenize(
    tokenizer: Any, text: str, spans: Sequence[Span], literals: Sequence[Span]
) -> tuple[list[int], list[Span]]:
    """Ids and each token's span of characters; a tokenizer without offsets is given the pieces one by one."""
    if getattr(tokenizer, "is_fast", True):
        return tokenize(tokenizer, text, literals)
    ids: list[int] = []
    offsets: list[Span] = []
    borders = sorted({0, len(text), *(border for span in (*spans, *literals) for border in span)})
    for start, end in pairwise(borders):
        is_words = any(first <= start and end <= last for first, last in literals)
        options = {"split_special_tokens": True} if is_words else {}
        piece = tokenizer(text[start:end], add_special_tokens=False, verbose=False, **options)["input_ids"]
        ids.extend(piece)
        offsets.extend([(start, end)] * len(piece))
    return ids, offsets


def _overlaps(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token shares a character with a span; both are in order."""
    out = [False] * len(offsets)
    remaining = iter(spans)
    span = next(remaining, None)
    for i, (start, end) in enumerate(offsets):
        while span is not None and span[1] <= start:
            span = next(remaining, None)
        if span is None:
            break
        out[i] = end > span[0] and end > start
    return out

"""Conversations as tokens by a chat template, and which of the tokens are learnt: the assistant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.records import Message
from tunesmith.data.answers import Span, find_answers
from tunesmith.data.render import PLAIN_TEMPLATE, plain_messages, render, render_chat

__all__ = ["PLAIN_TEMPLATE", "EncodedChat", "encode_chat", "locate_answers", "render_chat", "tokenize_spans"]


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
    text, spans = locate_answers(tokenizer, messages, tools=tools)
    ids, _, is_trained = tokenize_spans(tokenizer, text, spans)
    num_cut = max(0, len(ids) - max_length)
    return EncodedChat(tuple(ids[:max_length]), tuple(is_trained[:max_length]), num_cut)


def tokenize_spans(
    tokenizer: Any, text: str, spans: Sequence[Span]
) -> tuple[list[int], list[tuple[int, int]], list[bool]]:
    """Token ids, each token's span of characters, and whether it shares a character with one of `spans`."""
    ids, offsets = _tokenize(tokenizer, text, spans)
    return ids, offsets, _overlaps(offsets, spans)


def locate_answers(
    tokenizer: Any, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, list[Span]]:
    """The rendered text and the spans of characters in it that are learnt, in order."""
    plain, tool_list = plain_messages(tokenizer, messages, tools)
    text = render(tokenizer, plain, tool_list, False)
    shift = len(plain) - len(messages)  # a system message may have been put in front
    wanted = [i + shift for i, m in enumerate(messages) if m.role == "assistant" and m.weight > 0]
    if not wanted:
        return text, []
    found = find_answers(tokenizer, plain, tool_list, text)
    spans = [found[i] for i in wanted if i in found]
    if len(spans) != len(wanted):
        raise UserError(
            "the assistant's words cannot be found in what the chat template makes of this conversation.",
            code="nothing_trained",
            remedy="Use another chat template, or a conversation that it keeps whole.",
        )
    return text, spans


def _tokenize(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[Span]]:
    """Ids and each token's span of characters; a tokenizer without offsets is given the pieces one by one."""
    if getattr(tokenizer, "is_fast", True):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["input_ids"], encoded["offset_mapping"]
    ids: list[int] = []
    offsets: list[Span] = []
    borders = sorted({0, len(text), *(border for span in spans for border in span)})
    for start, end in pairwise(borders):
        piece = tokenizer(text[start:end], add_special_tokens=False, verbose=False)["input_ids"]
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

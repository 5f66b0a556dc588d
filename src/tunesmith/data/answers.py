"""Where the assistant's words are in a rendered conversation, for any template.

They are found by rendering, never by reading the template: each turn's content is replaced by a mark that cannot
occur, so what stands around the marks is what the template itself wrote. Learnt is an answer with what ends its turn;
the header before it ("<|im_start|>assistant") is given at generation and is not learnt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from tunesmith.core.errors import UserError
from tunesmith.data.render import render, template_of

Span = tuple[int, int]
"""From one character up to another."""
_MARK = "\ue000{}\ue001"
"""Private-use characters around a number: no text or template has them, and stripping keeps them."""
_WHOLE_MARKS = re.compile(r"(?:\s*(?:<[^<>]*>|\[[^\[\]]*\]|[^\s<\[]+))*")


def find_answers(
    tokenizer: Any, plain: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], text: str
) -> dict[int, Span]:
    """The span in `text` of each assistant message that can be found, by the message's number."""
    found = _by_skeleton(tokenizer, plain, tools, text)
    return found if found is not None else _turn_by_turn(tokenizer, plain, tools, text)


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """What a template writes around the contents: `segments[k]` stands before the k-th content it shows.

    `order[k]` is the number of the message shown k-th. For assistant messages `lead` characters at the end of the
    segment before, and `tail` at the start of the segment after, are learnt too.
    """

    segments: tuple[str, ...]
    order: tuple[int, ...]
    lead: Mapping[int, int]
    tail: Mapping[int, int]


_skeletons: WeakKeyDictionary[Any, dict[Any, _Skeleton | None]] = WeakKeyDictionary()
"""Skeletons by tokenizer and shape of conversation: a cache, never a setting."""
_MAX_SKELETONS = 500


def _by_skeleton(
    tokenizer: Any, plain: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], text: str
) -> dict[int, Span] | None:
    """Spans by message, if the contents stand in the text as the skeleton says, character for character."""
    if any("tool_calls" in message for message in plain):
        return None
    key = (
        template_of(tokenizer),
        *((m["role"], m.get("name"), bool(m.get("tool_call_id"))) for m in plain),
        str(tools),
    )
    cache = _skeletons.setdefault(tokenizer, {})
    if key not in cache:
        if len(cache) >= _MAX_SKELETONS:
            cache.clear()
        cache[key] = _make_skeleton(tokenizer, plain, tools)
    skeleton = cache[key]
    if skeleton is None:
        return None
    for strip in (False, True):
        contents = [plain[i]["content"].strip() if strip else plain[i]["content"] for i in skeleton.order]
        pieces = [part for pair in zip(skeleton.segments, contents, strict=False) for part in pair]
        if "".join(pieces) + skeleton.segments[-1] == text:
            return _spans(skeleton, contents)
    return None


def _spans(skeleton: _Skeleton, contents: Sequence[str]) -> dict[int, Span]:
    found, position = {}, 0
    for segment, number, content in zip(skeleton.segments, skeleton.order, contents, strict=False):
        start = position + len(segment)
        position = start + len(content)
        if number in skeleton.lead:
            found[number] = (start - skeleton.lead[number], position + skeleton.tail[number])
    return found


def _make_skeleton(
    tokenizer: Any, plain: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> _Skeleton | None:
    marked = [{**message, "content": _MARK.format(i)} for i, message in enumerate(plain)]
    try:
        text = render(tokenizer, marked, tools, False)
    except UserError:
        return None
    segments, order, position = [], [], 0
    while (start := text.find("\ue000", position)) >= 0:
        end = text.find("\ue001", start)
        number = text[start + 1 : end]
        if end < 0 or not number.isdigit() or int(number) in order:
            return None
        segments.append(text[position:start])
        order.append(int(number))
        position = end + 1
    segments.append(text[position:])
    answers = [i for i, message in enumerate(plain) if message["role"] == "assistant"]
    if any(i not in order for i in answers):
        return None
    lead, tail = {}, {}
    for i in answers:
        start = text.index(_MARK.format(i))
        after = start + len(_MARK.format(i))
        begin = _start(tokenizer, marked, tools, i, text)
        lead[i] = start - begin if begin is not None and begin <= start else 0
        tail[i] = _tail(tokenizer, marked, tools, i, text[after:])
    return _Skeleton(tuple(segments), tuple(order), lead, tail)


def _start(
    tokenizer: Any, plain: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], number: int, text: str
) -> int | None:
    """Where what the model must write begins: after the generation prompt. None where the text does not have it so.

    A template without a generation prompt writes its header with the answer; it is not learnt.
    """
    mark = _MARK.format(number)
    try:
        prompt = render(tokenizer, plain[:number], tools, True)
        if prompt == render(tokenizer, plain[:number], tools, False):
            alone = render(tokenizer, [*plain[:number], {"role": "assistant", "content": mark}], tools, False)
            header = alone.partition(mark)[0].removeprefix(prompt)
            prompt += header if header.strip() else ""
    except UserError:
        return None
    return len(prompt) if text.startswith(prompt) else None


def _tail(
    tokenizer: Any,
    plain: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    number: int,
    after: str,
) -> int:
    """Characters after an answer's mark that end its turn.

    They are what the template writes behind it when it is the last message; white space after the end is not learnt.
    """
    try:
        alone = render(tokenizer, plain[: number + 1], tools, False)
    except UserError:
        return 0
    mark = _MARK.format(number)
    ending = alone.rpartition(mark)[2] if mark in alone else ""
    ending = ending.rstrip() or ending
    shared = 0
    while shared < min(len(ending), len(after)) and ending[shared] == after[shared]:
        shared += 1
    if shared == len(ending):
        return shared
    whole = _WHOLE_MARKS.match(ending, 0, shared)  # "<|end|><|" is "<|end|>" and a piece of another mark
    return len(whole.group().rstrip()) if whole else 0


def _turn_by_turn(
    tokenizer: Any, plain: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], text: str
) -> dict[int, Span]:
    """Spans of the answers where the skeleton does not fit: tool calls, dropped reasoning, changed contents.

    One turn at a time gets a mark; what the two texts share on both sides is around the answer.
    """
    found: dict[int, Span] = {}
    for number, message in enumerate(plain):
        if message["role"] == "assistant":
            spans = (_one_turn(tokenizer, plain, tools, text, number, m) for m in _marked_messages(message, number))
            span = next((span for span in spans if span is not None and span[0] < span[1]), None)
            if span is not None:
                found[number] = span
    return found


def _marked_messages(message: Mapping[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """The message with a mark in it: as its content, instead of its calls, or as the first call's name."""
    mark = _MARK.format(number)
    yield {**message, "content": mark}
    if calls := message.get("tool_calls"):
        yield {key: value for key, value in message.items() if key != "tool_calls"} | {"content": mark}
        first = {**calls[0], "function": {**calls[0]["function"], "name": mark}}
        yield {**message, "tool_calls": [first, *calls[1:]]}


def _one_turn(
    tokenizer: Any,
    plain: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    text: str,
    number: int,
    message: Mapping[str, Any],
) -> Span | None:
    mark = _MARK.format(number)
    marked = [*plain[:number], message, *plain[number + 1 :]]
    try:
        other = render(tokenizer, marked, tools, False)
    except UserError:
        return None
    before, _, after = other.partition(mark)
    if other.count(mark) != 1 or not text.endswith(after):
        return None
    end = len(text) - len(after) + _tail(tokenizer, marked, tools, number, after)
    start = _start(tokenizer, plain, tools, number, text)
    if start is None and message["content"] != mark:
        before = _before_exchange(tokenizer, plain, tools, number)
    if start is None and before and text.startswith(before):
        start = len(before)
    if start is None:
        return None
    return (start, end) if _shows(text[start:end], plain[number]) else None


def _before_exchange(
    tokenizer: Any, plain: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], number: int
) -> str:
    """The text before a tool call: one plain answer stands for the call, its results and what follows them."""
    mark = _MARK.format(number)
    rest = list(plain[number + 1 :])
    while rest and rest[0]["role"] != "user":
        rest.pop(0)
    try:
        text = render(tokenizer, [*plain[:number], {"role": "assistant", "content": mark}, *rest], tools, False)
    except UserError:
        return ""
    return text.partition(mark)[0].rstrip(" ") if mark in text else ""


def _shows(shown: str, message: Mapping[str, Any]) -> bool:
    """Whether a span holds the message's words (reasoning aside) and the names of its calls."""
    words = message["content"].rpartition("</think>")[2].strip()
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    return all(part in shown for part in (words, *names))

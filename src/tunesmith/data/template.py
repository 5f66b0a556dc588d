"""Chat templates: the model's own, or `PLAIN_TEMPLATE`; and which tokens the assistant speaks, for any template.

The assistant's words are found by rendering, never by reading the template: each turn's content is replaced by a mark
that cannot occur, so what stands around the marks is what the template itself wrote. Learnt is an answer with what ends
its turn; the header before it ("<|im_start|>assistant") is given at generation and is not learnt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from jinja2.exceptions import TemplateError

from tunesmith.core.errors import UserError
from tunesmith.core.records import Message
from tunesmith.data.timelimit import TimeUp, time_limit

PLAIN_TEMPLATE = """\
{{ bos_token if bos_token is defined and bos_token else '' }}\
{% for message in messages %}\
### {{ message.role | capitalize }}:
{{ message.content }}{{ eos_token if message.role == 'assistant' else '' }}

{% endfor %}\
{% if add_generation_prompt %}### Assistant:
{% endif %}"""
"""Used where a tokenizer has no template of its own, and saved with the trained model:

    ### User:
    What does error E07 mean?

    ### Assistant:
    The water tank is empty.</s>

Roles are headings, an answer starts on its own line (so it is tokenised alike with and without a prompt before it),
and the model's end-of-sequence token ends each answer.
"""

RENDER_SECONDS = 5.0
MAX_GROWTH = 50
"""A template may write so many times the characters it was given, beyond 100,000."""
_MARK = "\ue000{}\ue001"
"""Private-use characters around a number: no text or template has them, and stripping keeps them."""
_WHOLE_MARKS = re.compile(r"(?:\s*(?:<[^<>]*>|\[[^\[\]]*\]|[^\s<\[]+))*")


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """Token ids of a rendered conversation and which of them are learnt; `num_cut` were beyond the limit."""

    input_ids: tuple[int, ...]
    is_trained: tuple[bool, ...]
    num_cut: int = 0


Span = tuple[int, int]


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = False,
) -> str:
    """The conversation as text. Where a template has no place for tools, they are written in words.

    Raises:
        UserError: The template refuses the conversation, reaches for internals, or does not end.
    """
    return _render(tokenizer, *_plain(tokenizer, messages, tools), add_generation_prompt)


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
    plain, tool_list = _plain(tokenizer, messages, tools)
    text = _render(tokenizer, plain, tool_list, False)
    shift = len(plain) - len(messages)  # a system message may have been put in front
    wanted = [i + shift for i, m in enumerate(messages) if m.role == "assistant" and m.weight > 0]
    if not wanted:
        return text, []
    found = _by_skeleton(tokenizer, plain, tool_list, text)
    if found is None:
        found = _turn_by_turn(tokenizer, plain, tool_list, text)
    spans = [found[i] for i in wanted if i in found]
    if len(spans) != len(wanted):
        raise UserError(
            "the assistant's words cannot be found in what the chat template makes of this conversation.",
            code="nothing_trained",
            remedy="Use another chat template, or a conversation that it keeps whole.",
        )
    return text, spans


# How messages reach the template


def _template(tokenizer: Any) -> str:
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):
        own = own.get("default")
    return own or PLAIN_TEMPLATE


def _plain(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    """Messages as templates take them; calls and tools become words where the template ignores them."""
    plain = [message.to_dict() for message in messages]
    template = _template(tokenizer) if tools or any(message.tool_calls for message in messages) else ""
    if "tool_calls" in template:
        for message in plain:
            if "tool_calls" in message:
                message["tool_calls"] = [_with_object(call) for call in message["tool_calls"]]
    elif template:
        for message in plain:
            if calls := message.pop("tool_calls", None):
                words = "\n".join(_call_in_words(call) for call in calls)
                message["content"] = f"{message['content']}\n{words}" if message["content"] else words
    if tools and "tools" not in template:
        plain = _with_tools_in_words(plain, tools)
        tools = ()
    return plain, list(tools)


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call whose arguments are an object, as templates expect, not OpenAI's JSON text."""
    function = dict(call["function"])
    function["arguments"] = _arguments(function)
    return {**call, "function": function}


def _arguments(function: Mapping[str, Any]) -> Any:
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _call_in_words(call: Mapping[str, Any]) -> str:
    function = call["function"]
    value = {"name": function["name"], "arguments": _arguments(function)}
    return f"<tool_call>\n{json.dumps(value, ensure_ascii=False)}\n</tool_call>"


def _with_tools_in_words(plain: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    listing = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    words = (
        f"You may call these functions:\n<tools>\n{listing}\n</tools>\n"
        'Answer a call with <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'
    )
    if plain and plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{plain[0]['content']}\n\n{words}"}, *plain[1:]]
    return [{"role": "system", "content": words}, *plain]


def _render(
    tokenizer: Any, plain: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], add_generation_prompt: bool
) -> str:
    """The template's text; it runs in transformers' immutable sandbox, here also bounded in time and size."""
    options: dict[str, Any] = {"tools": list(tools)} if tools else {}
    if not getattr(tokenizer, "chat_template", None):
        options["chat_template"] = PLAIN_TEMPLATE
    try:
        with time_limit(RENDER_SECONDS):
            text = tokenizer.apply_chat_template(
                list(plain), tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
    except TimeUp:
        raise _bad_template(f"it did not end within {RENDER_SECONDS:.0f} seconds") from None
    except (TemplateError, TypeError, ValueError, KeyError, OverflowError, MemoryError, RecursionError) as fault:
        raise _bad_template(str(fault).partition("\n")[0] or type(fault).__name__) from None
    given = sum(len(str(message)) for message in plain) + sum(len(str(tool)) for tool in tools)
    if not isinstance(text, str) or len(text) > 100_000 + MAX_GROWTH * given:
        raise _bad_template("it wrote far more than it was given")
    return text


def _bad_template(why: str) -> UserError:
    return UserError(
        f"the model's chat template refuses this conversation: {why}.",
        code="bad_template",
        remedy="Change the roles to what the template takes, or use another model's template.",
    )


# Finding the answers


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
    key = (_template(tokenizer), *((m["role"], m.get("name"), bool(m.get("tool_call_id"))) for m in plain), str(tools))
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
        text = _render(tokenizer, marked, tools, False)
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
        prompt = _render(tokenizer, plain[:number], tools, True)
        if prompt == _render(tokenizer, plain[:number], tools, False):
            alone = _render(tokenizer, [*plain[:number], {"role": "assistant", "content": mark}], tools, False)
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
        alone = _render(tokenizer, plain[: number + 1], tools, False)
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
        other = _render(tokenizer, marked, tools, False)
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
        text = _render(tokenizer, [*plain[:number], {"role": "assistant", "content": mark}, *rest], tools, False)
    except UserError:
        return ""
    return text.partition(mark)[0].rstrip(" ") if mark in text else ""


def _shows(shown: str, message: Mapping[str, Any]) -> bool:
    """Whether a span holds the message's words (reasoning aside) and the names of its calls."""
    words = message["content"].rpartition("</think>")[2].strip()
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    return all(part in shown for part in (words, *names))


# From characters to tokens


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

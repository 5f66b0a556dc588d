"""Conversations out of rows: OpenAI's messages, ShareGPT's turns, tools, and the rules of their order.

Reasoning given apart (a "reasoning" part, `reasoning_content`) is put before the answer as `<think>…</think>`,
the form that reasoning models write. Tool calls keep OpenAI's shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.errors import suggest
from tunesmith.core.records import Message, Role
from tunesmith.data.columns import find_column, parsed, text_of, to_json
from tunesmith.formats.base import RowFault

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
CALLS = {"function_call", "tool_call"}
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
TOOL_COLUMNS = ("tools", "available_tools", "functions")


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, in OpenAI's or ShareGPT's shape (or the JSON text of one)."""
    if isinstance(value, str):
        start = value.lstrip()[:200]
        return start.startswith("[") and ('"role"' in start or '"from"' in start or '"content"' in start)
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], Mapping)
        and bool({"role", "from"} & set(value[0]))
    )


def read_messages(value: Any, name: str) -> tuple[Message, ...]:
    """The messages of a list; `name` is its column, for messages.

    Raises:
        RowFault: It is no list of messages, or one of them is wrong.
    """
    value = parsed(value, name)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not value:
        raise RowFault("no_messages", f'"{name}" is not a list of messages', "write [{...}, ...]")
    return tuple(_message(item, number) for number, item in enumerate(value, 1) if not _is_blank_system(item))


def read_tools(row: Mapping[str, Any]) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """The tools of a row in OpenAI's shape, and the column that held them ("" where none).

    Raises:
        RowFault: They are no list of functions.
    """
    name = find_column(row, TOOL_COLUMNS)
    value = parsed(row.get(name), name) if name else None
    if not value:
        return (), name
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowFault("bad_tools", f'"{name}" is not a list of functions', 'write [{"type": "function", ...}]')
    tools = tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in value)
    for number, tool in enumerate(tools, 1):
        function = tool["function"]
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowFault("bad_tools", f'tool {number} in "{name}" has no name', "give the function its name")
    return tools, name


def with_system(messages: tuple[Message, ...], row: Mapping[str, Any], used: set[str]) -> tuple[Message, ...]:
    """The messages with the row's system column in front, where it has one; the column is added to `used`."""
    name = find_column(row, SYSTEM_COLUMNS)
    if not name:
        return messages
    used.add(name)
    text = text_of(row, name, may_be_empty=True)
    if not text.strip() or (messages and messages[0].role == "system"):
        return messages
    return (Message("system", text), *messages)


def check_order(messages: Sequence[Message], *, needs_answer: bool = True) -> None:
    """Nothing, if the roles follow each other as a conversation does.

    Raises:
        RowFault: No assistant turn, a tool result without its call, a system message in the middle, empty content.
    """
    waiting: set[str] = set()
    num_calls = 0
    for number, message in enumerate(messages, 1):
        if message.role == "tool":
            if not num_calls:
                raise RowFault(
                    "tool_without_call",
                    f"message {number} is a tool result, but no tool call precedes it",
                    'put the assistant\'s "tool_calls" before it',
                )
            if message.tool_call_id and waiting and message.tool_call_id not in waiting:
                raise RowFault(
                    "tool_without_call",
                    f'message {number} answers the tool call "{message.tool_call_id}", which was never made',
                    'use the "id" of the call',
                )
            continue
        if message.role == "assistant":
            num_calls = len(message.tool_calls)
            waiting = {str(call["id"]) for call in message.tool_calls if call.get("id")}
        else:
            num_calls = 0
        if not message.tool_calls and not message.content.strip():
            raise RowFault(
                "empty_content", f'message {number} ("{message.role}") is empty', "fill it or delete the row"
            )
    if needs_answer and not any(message.role == "assistant" for message in messages):
        last = f'last message is "{messages[-1].role}"' if messages else "there is no message"
        raise RowFault("no_assistant", f"{last}, none is the assistant's: nothing to learn", "delete the row")


def _is_blank_system(item: Any) -> bool:
    return isinstance(item, Mapping) and item.get("role", item.get("from")) == "system" and not _body(item)


def _body(item: Mapping[str, Any]) -> Any:
    return next((item[key] for key in ("content", "value", "text") if item.get(key) is not None), None)


def _message(item: Any, number: int) -> Message:
    if not isinstance(item, Mapping):
        raise RowFault("bad_message", f"message {number} is not an object", 'write {"role": ..., "content": ...}')
    given = item.get("role", item.get("from"))
    if not isinstance(given, str):
        raise RowFault("no_role", f'message {number} has no "role"', "say who speaks")
    role = ROLES.get(given) or ROLES.get(given.strip().casefold())
    if role is None:
        hint = suggest(given, ("system", "user", "assistant", "tool")).here
        remedy = f'write "{hint[0]}"' if hint else "use system, user, assistant or tool"
        raise RowFault("unknown_role", f'message {number} has the unknown role "{given}"', remedy)
    body = _body(item)
    if given in CALLS:
        return Message(role, "", tool_calls=_calls_in_text(body, number))
    content, calls = _content(body, number)
    reasoning = item.get("reasoning_content") or item.get("reasoning")
    if isinstance(reasoning, str) and role == "assistant" and "<think>" not in content:
        content = _thinking(reasoning, content)
    calls += _tool_calls(item, number)
    if body is None and not calls and role != "tool":
        raise RowFault("empty_content", f'message {number} ("{given}") has no content', "fill it or delete the row")
    return Message(
        role,
        content,
        name=str(item.get("name") or ""),
        tool_calls=calls,
        tool_call_id=str(item.get("tool_call_id") or ""),
        weight=_weight(item.get("weight"), number),
    )


def _weight(value: Any, number: int) -> float:
    if value is None or value is True or value is False:
        return 1.0 if value is None else float(value)
    if value in (0, 1):
        return float(value)
    raise RowFault("bad_weight", f"message {number} has the weight {value!r}", "write 0 (not learnt) or 1")


def _content(body: Any, number: int) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """Text and tool calls of a message's content: a string, or a list of parts."""
    if body is None or isinstance(body, str):
        return body or "", ()
    if not isinstance(body, list):
        if isinstance(body, int | float) and not isinstance(body, bool):
            return str(body), ()
        raise RowFault("not_text", f"the content of message {number} is not text", "write a string")
    text: list[str] = []
    reasoning: list[str] = []
    calls: list[Mapping[str, Any]] = []
    for part in body:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        value = part if isinstance(part, str) else _part_text(part, kind, number)
        if kind in ("tool_call", "function_call"):
            calls.extend(_calls_in_text(value, number))
        elif kind in ("reasoning", "thinking"):
            reasoning.append(value)
        else:
            text.append(value)
    content = "".join(text)
    return (_thinking("\n".join(reasoning), content) if reasoning else content), tuple(calls)


def _part_text(part: Any, kind: str, number: int) -> str:
    value = part.get("text", part.get("value", part.get(kind))) if isinstance(part, Mapping) else None
    known = kind in ("text", "input_text", "output_text", "tool_call", "function_call", "reasoning", "thinking")
    if isinstance(value, Mapping) and known:
        return to_json(value)
    if isinstance(value, str) and known:
        return value
    raise RowFault(
        "not_text", f'message {number} has a part of type "{kind}", which is not text', "leave only text parts"
    )


def _thinking(reasoning: str, content: str) -> str:
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{content}"


def _tool_calls(item: Mapping[str, Any], number: int) -> tuple[Mapping[str, Any], ...]:
    calls = item.get("tool_calls")
    if not calls:
        old = item.get("function_call")
        return (_call(old, number),) if old else ()
    if not isinstance(calls, list):
        raise _bad_call(number, "tool_calls is not a list")
    return tuple(_call(call, number) for call in calls)


def _calls_in_text(body: Any, number: int) -> tuple[Mapping[str, Any], ...]:
    value = parsed(body, f"message {number}")
    return tuple(_call(call, number) for call in (value if isinstance(value, list) else [value]))


def _call(call: Any, number: int) -> Mapping[str, Any]:
    if not isinstance(call, Mapping):
        raise _bad_call(number, "a tool call is not an object")
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _bad_call(number, "a tool call has no name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, Mapping):
        arguments = to_json(arguments)
    if not isinstance(arguments, str | None):
        raise _bad_call(number, "the arguments of a tool call are neither an object nor its JSON text")
    out: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments or "{}"}}
    return {"id": str(call["id"]), **out} if call.get("id") else out


def _bad_call(number: int, why: str) -> RowFault:
    return RowFault("bad_tool_call", f"message {number}: {why}", 'write {"function": {"name", "arguments"}}')

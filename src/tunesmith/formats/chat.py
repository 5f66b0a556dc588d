"""OpenAI chat: a list of messages with role and content, with tools where they are used.

{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], "tools": [...]}.
Also read: content as a list of text parts, `weight` 0 on turns not to be learnt, and mistral-finetune's
`interactions`, `available_tools`, `system_prompt` and `only_last`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith.core.records import ChatExample, Message, Origin
from tunesmith.data.columns import find_column, other_columns
from tunesmith.data.messages import check_order, is_conversation, read_messages, read_tools, with_system
from tunesmith.formats.base import Format, RowFault

MESSAGES = ("messages", "interactions", "conversation", "conversations")


class Chat(Format):
    """Rows of OpenAI messages."""

    def matches(self, row: Mapping[str, Any]) -> float:
        name = find_column(row, MESSAGES)
        if not name:
            return 0.0
        value = row[name]
        if name in ("messages", "interactions") and (value == [] or value is None):
            return 0.5
        if not is_conversation(value):
            return 0.0
        return 0.9 if isinstance(value, str) or "role" in value[0] else 0.4

    def read(self, row: Mapping[str, Any], origin: Origin) -> ChatExample:
        name = find_column(row, MESSAGES)
        if not name:
            raise RowFault("missing_column", 'the row has no "messages"', "name its column with data.columns")
        used = {name}
        messages = with_system(read_messages(row[name], name), row, used)
        check_order(messages)
        tools, tool_column = read_tools(row)
        used.add(tool_column)
        if row.get("only_last") is True:
            used.add("only_last")
            messages = _only_last(messages)
        return ChatExample(origin=origin, messages=messages, tools=tools, fields=other_columns(row, used))

    def describe(self) -> str:
        return 'OpenAI chat: {"messages": [{"role", "content"}], "tools"}'


def _only_last(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    last = max(i for i, message in enumerate(messages) if message.role == "assistant")
    return tuple(
        replace(message, weight=0.0) if message.role == "assistant" and i != last else message
        for i, message in enumerate(messages)
    )

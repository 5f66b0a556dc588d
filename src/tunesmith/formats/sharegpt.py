"""ShareGPT: a list of turns with from and value, with function calls and observations.

{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}], "system": "...", "tools": "[]"}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import ChatExample, Origin
from tunesmith.data.columns import find_column, other_columns
from tunesmith.data.messages import check_order, is_conversation, read_messages, read_tools, with_system
from tunesmith.formats.base import Format, RowFault

TURNS = ("conversations", "conversation", "messages", "items")


class ShareGPT(Format):
    """Rows of ShareGPT turns."""

    def matches(self, row: Mapping[str, Any]) -> float:
        name = find_column(row, TURNS)
        if not name or not is_conversation(row[name]):
            return 0.0
        value = row[name]
        is_turn = '"from"' in value[:200] if isinstance(value, str) else "from" in value[0]
        return 0.92 if is_turn else 0.0

    def read(self, row: Mapping[str, Any], origin: Origin) -> ChatExample:
        name = find_column(row, TURNS)
        if not name:
            raise RowFault("missing_column", 'the row has no "conversations"', "name its column with data.columns")
        used = {name}
        messages = with_system(read_messages(row[name], name), row, used)
        check_order(messages)
        tools, tool_column = read_tools(row)
        used.add(tool_column)
        return ChatExample(origin=origin, messages=messages, tools=tools, fields=other_columns(row, used))

    def describe(self) -> str:
        return 'ShareGPT: {"conversations": [{"from", "value"}], "system", "tools"}'

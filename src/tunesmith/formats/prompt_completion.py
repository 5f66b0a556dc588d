"""A prompt and its completion, under any of the usual column names.

{"prompt", "completion"}, {"question", "answer"}, {"instruction", "response"}, {"query", "response"},
{"input", "output"} and their mixtures. Each is one user and one assistant message; a "system" column comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import ChatExample, Message, Origin
from tunesmith.data.columns import find_column, is_text, other_columns, text_of
from tunesmith.data.messages import check_order, is_conversation, read_messages, read_tools, with_system
from tunesmith.formats.base import Format, RowFault

PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("query", "response"),
    ("question", "response"),
    ("prompt", "answer"),
    ("query", "answer"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("input", "output"),
    ("prompt", "output"),
    ("question", "output"),
    ("input", "response"),
    ("instruction", "output"),
)
"""Surest first."""


class PromptCompletion(Format):
    """Rows of a prompt and a completion."""

    def matches(self, row: Mapping[str, Any]) -> float:
        prompt, completion = _columns(row)
        if not prompt or not _is_readable(row[prompt]) or not _is_readable(row[completion]):
            return 0.0
        return 0.7 if prompt == "input" else 0.8

    def read(self, row: Mapping[str, Any], origin: Origin) -> ChatExample:
        prompt, completion = _columns(row)
        if not prompt:
            raise RowFault(
                "missing_column", "the row has no prompt with its completion", "name the columns with data.columns"
            )
        used = {prompt, completion}
        turns = (*_messages(row, prompt, "user"), *_messages(row, completion, "assistant"))
        messages = with_system(turns, row, used)
        check_order(messages)
        tools, tool_column = read_tools(row)
        used.add(tool_column)
        return ChatExample(origin=origin, messages=messages, tools=tools, fields=other_columns(row, used))

    def describe(self) -> str:
        return 'prompt and completion: {"prompt", "completion"}, {"question", "answer"}, {"input", "output"}, …'


def _columns(row: Mapping[str, Any]) -> tuple[str, str]:
    for prompt, completion in PAIRS:
        found = find_column(row, (prompt,))
        if found and (other := find_column(row, (completion,))):
            return found, other
    return "", ""


def _is_readable(value: Any) -> bool:
    return is_text(value) or value is None or is_conversation(value)


def _messages(row: Mapping[str, Any], name: str, role: str) -> tuple[Message, ...]:
    if isinstance(row[name], list):
        return read_messages(row[name], name)
    return (Message("user" if role == "user" else "assistant", text_of(row, name)),)

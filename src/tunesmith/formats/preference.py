"""A prompt with a chosen and a rejected answer.

{"prompt", "chosen", "rejected"} with text or messages; the prompt also as {"conversations"}, {"messages"},
{"question"} or Alpaca's {"instruction", "input"}; or none, where chosen and rejected are whole conversations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import Message, Origin, PreferenceExample
from tunesmith.data.columns import find_column, other_columns, text_of
from tunesmith.data.messages import check_order, is_conversation, read_messages, read_tools, with_system
from tunesmith.formats.base import Format, RowFault

PROMPT = ("prompt", "conversations", "messages", "question", "instruction", "query", "input")


class Preference(Format):
    """Rows of a prompt with two answers, one better."""

    def matches(self, row: Mapping[str, Any]) -> float:
        chosen, rejected = find_column(row, ("chosen",)), find_column(row, ("rejected",))
        if not chosen or not rejected or not row[chosen] or not row[rejected]:
            return 0.0
        return 1.0 if find_column(row, PROMPT) or isinstance(row[chosen], list) else 0.6

    def read(self, row: Mapping[str, Any], origin: Origin) -> PreferenceExample:
        names = find_column(row, ("chosen",)), find_column(row, ("rejected",))
        if not all(names):
            raise RowFault("missing_column", 'the row has no "chosen" and "rejected"', "name them with data.columns")
        used = set(names)
        chosen, rejected = (_turns(row, name) for name in names)
        prompt = _prompt(row, used)
        shared = _shared(chosen, rejected)
        prompt = with_system(prompt or chosen[:shared], row, used)
        if not prompt:
            raise RowFault("no_prompt", "there is no prompt before the two answers", "add it as the column prompt")
        check_order(prompt, needs_answer=False)
        first, second = _answer(chosen, names[0]), _answer(rejected, names[1])
        if first == second:
            raise RowFault("same_answers", '"chosen" and "rejected" are the same text', "delete the row")
        _, tool_column = read_tools(row)
        used.add(tool_column)
        return PreferenceExample(
            origin=origin, prompt=prompt, chosen=first, rejected=second, fields=other_columns(row, used)
        )

    def describe(self) -> str:
        return 'preference: {"prompt", "chosen", "rejected"}, or {"conversations", "chosen", "rejected"}'


def _turns(row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    value = row[name]
    if isinstance(value, Mapping | list) or is_conversation(value):
        return read_messages(value, name)
    return (Message("assistant", text_of(row, name)),)


def _prompt(row: Mapping[str, Any], used: set[str]) -> tuple[Message, ...]:
    name = find_column(row, PROMPT)
    if not name:
        return ()
    used.add(name)
    value = row[name]
    if isinstance(value, list) or is_conversation(value):
        return read_messages(value, name)
    question = text_of(row, name)
    if name == "instruction":
        used.update({"input", "output"} & set(row))  # Alpaca's output repeats the chosen answer
        context = text_of(row, "input", may_be_empty=True) if "input" in row else ""
        question = f"{question}\n\n{context}" if context.strip() else question
    return (Message("user", question),)


def _shared(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return shared


def _answer(turns: tuple[Message, ...], name: str) -> str:
    last = turns[-1]
    if last.role != "assistant" or not last.content.strip():
        raise RowFault("no_assistant", f'"{name}" does not end with an answer of the assistant', "delete the row")
    return last.content

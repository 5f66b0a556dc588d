"""Alpaca: an instruction, perhaps an input, and an output, with earlier turns where there are any.

{"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["question", "answer"]]}.
Instruction and input become one user message with a blank line between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import ChatExample, Message, Origin
from tunesmith.data.columns import find_column, is_text, other_columns, parsed, text_of
from tunesmith.data.messages import check_order, with_system
from tunesmith.formats.base import Format, RowFault


class Alpaca(Format):
    """Rows of instruction, input and output."""

    def matches(self, row: Mapping[str, Any]) -> float:
        instruction, output = find_column(row, ("instruction",)), find_column(row, ("output",))
        if not instruction or not output or not is_text(row[instruction]) or not is_text(row[output]):
            return 0.0
        return 0.9 if find_column(row, ("input",)) else 0.85

    def read(self, row: Mapping[str, Any], origin: Origin) -> ChatExample:
        names = {key: find_column(row, (key,)) for key in ("instruction", "input", "output", "history")}
        for key in ("instruction", "output"):
            if not names[key]:
                raise RowFault("missing_column", f'the row has no "{key}"', "name its column with data.columns")
        question = text_of(row, names["instruction"])
        context = text_of(row, names["input"], may_be_empty=True) if names["input"] else ""
        if context.strip():
            question = f"{question}\n\n{context}"
        used = {name for name in names.values() if name}
        turns = (
            *_history(row, names["history"]),
            Message("user", question),
            Message("assistant", text_of(row, names["output"])),
        )
        messages = with_system(turns, row, used)
        check_order(messages)
        return ChatExample(origin=origin, messages=messages, fields=other_columns(row, used))

    def describe(self) -> str:
        return 'Alpaca: {"instruction", "input", "output", "system", "history"}'


def _history(row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    value = parsed(row.get(name), name) if name else None
    if not value:
        return ()
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in value
    ):
        raise RowFault("bad_history", '"history" is not a list of [question, answer] pairs', "write [[..., ...], ...]")
    return tuple(
        message for asked, answered in value for message in (Message("user", asked), Message("assistant", answered))
    )

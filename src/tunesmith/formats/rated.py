"""A prompt and an answer with a thumb up or down.

{"prompt", "completion", "label": true}, or {"messages": [...], "label": false} where the last message is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.records import Message, Origin, RatedExample
from tunesmith.data.columns import find_column, other_columns, text_of
from tunesmith.data.messages import check_order, is_conversation, read_messages, with_system
from tunesmith.formats.base import Format, RowFault

THUMB = ("label", "kto_tag", "rating", "thumb", "is_good")
PROMPT = ("prompt", "question", "instruction", "query")
ANSWER = ("completion", "response", "answer", "output")
TALK = ("messages", "conversations", "conversation")
UP, DOWN = {"true", "1", "up", "good", "yes"}, {"false", "0", "down", "bad", "no"}


class Rated(Format):
    """Rows of one judged answer."""

    def matches(self, row: Mapping[str, Any]) -> float:
        thumb = find_column(row, THUMB)
        if not thumb or _verdict(row[thumb]) is None:
            return 0.0
        talk = find_column(row, TALK)
        if talk and is_conversation(row[talk]):
            return 0.97
        answer = find_column(row, ANSWER)
        is_full = bool(answer) and (bool(find_column(row, PROMPT)) or is_conversation(row[answer]))
        return 0.95 if is_full else 0.0

    def read(self, row: Mapping[str, Any], origin: Origin) -> RatedExample:
        thumb = find_column(row, THUMB)
        is_good = _verdict(row[thumb]) if thumb else None
        if is_good is None:
            raise RowFault("no_label", "the row has no thumb up or down", 'add "label": true or false')
        used = {thumb}
        messages = with_system(_messages(row, used), row, used)
        check_order(messages)
        if messages[-1].role != "assistant":
            raise RowFault(
                "no_assistant", f'last message is "{messages[-1].role}": nothing is judged', "delete the row"
            )
        if not messages[-1].content.strip():
            raise RowFault("empty_content", "the judged answer has no text", "delete the row")
        return RatedExample(
            origin=origin,
            prompt=messages[:-1],
            answer=messages[-1].content,
            is_good=is_good,
            fields=other_columns(row, used),
        )

    def describe(self) -> str:
        return 'rated: {"prompt", "completion", "label": true}, or {"messages", "label": false}'


def _verdict(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    text = str(value).strip().casefold() if isinstance(value, int | str) else ""
    return True if text in UP else False if text in DOWN else None


def _messages(row: Mapping[str, Any], used: set[str]) -> tuple[Message, ...]:
    if talk := find_column(row, TALK):
        used.add(talk)
        return read_messages(row[talk], talk)
    prompt, answer = find_column(row, PROMPT), find_column(row, ANSWER)
    if not answer:
        raise RowFault("missing_column", 'the row has no "completion"', "name its column with data.columns")
    used |= {prompt, answer}
    turns: tuple[Message, ...] = ()
    for name, role in ((prompt, "user"), (answer, "assistant")):
        if not name:
            continue
        if is_conversation(row[name]):
            turns += read_messages(row[name], name)
        else:
            turns += (Message("user" if role == "user" else "assistant", text_of(row, name)),)
    return turns

"""Records: what a message and a conversation say about themselves."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from tunesmith.core.records import ChatExample, Message, Origin

HERE = Origin("a.jsonl", 3)


def test_an_origin_reads_as_file_and_line() -> None:
    assert str(HERE) == "a.jsonl:3"


def test_a_message_has_no_empty_keys() -> None:
    assert Message("user", "hi").to_dict() == {"role": "user", "content": "hi"}
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    assert Message("assistant", "", tool_calls=(call,)).to_dict()["tool_calls"] == [call]
    answer = Message("tool", "4", name="f", tool_call_id="1").to_dict()
    assert (answer["name"], answer["tool_call_id"]) == ("f", "1")


def test_the_prompt_is_all_before_the_last_assistant_turn() -> None:
    turns = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    chat = ChatExample(origin=HERE, messages=(*turns, Message("assistant", "d")))
    assert chat.prompt == turns and chat.answer == "d"
    unanswered = ChatExample(origin=HERE, messages=turns[:2])
    assert unanswered.prompt == turns[:2] and unanswered.answer == ""


def test_records_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        HERE.line = 4  # type: ignore[misc]

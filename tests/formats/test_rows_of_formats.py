"""What formats make of particular rows, and what they say about wrong ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.core.plugins import build
from tunesmith.core.records import ChatExample, LabelExample, Message, Origin, PreferenceExample, RatedExample
from tunesmith.data.load import recognise
from tunesmith.formats.base import RowFault

ORIGIN = Origin("rows.jsonl", 1)
USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "So."}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}


def read(row: dict[str, Any], name: str = "") -> Any:
    return (build("formats", name) if name else recognise([row])).read(row, ORIGIN)


def fault(row: dict[str, Any], name: str = "chat") -> RowFault:
    with pytest.raises(RowFault) as caught:
        read(row, name)
    return caught.value


def messages(*given: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(given)}


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ([USER], "no_assistant", 'last message is "user", none is the assistant\'s: nothing to learn'),
        ([], "no_messages", '"messages" is not a list of messages'),
        ([USER, {"role": "assistent", "content": "x"}], "unknown_role", 'message 2 has the unknown role "assistent"'),
        ([USER, {"role": "assistant", "content": " "}], "empty_content", 'message 2 ("assistant") is empty'),
        ([USER, {"role": "assistant"}], "empty_content", 'message 2 ("assistant") has no content'),
        ([{"content": "x"}, ANSWER], "no_role", 'message 1 has no "role"'),
        (
            [USER, {"role": "tool", "content": "x"}, ANSWER],
            "tool_without_call",
            "message 2 is a tool result, but no tool call precedes it",
        ),
        (
            [
                USER,
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c2", "content": "x"},
                ANSWER,
            ],
            "tool_without_call",
            'message 3 answers the tool call "c2", which was never made',
        ),
        ([USER, {**ANSWER, "weight": 0.5}], "bad_weight", "message 2 has the weight 0.5"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER],
            "not_text",
            'message 1 has a part of type "image_url", which is not text',
        ),
        ([USER, {"role": "assistant", "tool_calls": [{}]}], "bad_tool_call", "message 2: a tool call has no name"),
    ],
)
def test_wrong_conversations_are_named_exactly(given: list[dict[str, Any]], code: str, message: str) -> None:
    found = fault(messages(*given))
    assert (found.code, found.message) == (code, message)
    assert found.remedy


def test_a_misspelt_role_gets_the_right_one_as_remedy() -> None:
    assert fault(messages(USER, {"role": "assistent", "content": "x"})).remedy == 'write "assistant"'


def test_a_chat_keeps_tools_calls_names_and_weights() -> None:
    row = messages(
        {**USER, "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
        {"role": "tool", "tool_call_id": "c1", "content": "there"},
        {**ANSWER, "weight": 1},
    ) | {"tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}]}
    example = read(row)
    assert example.messages == (
        Message("user", "Why?", name="ann"),
        Message("assistant", "", tool_calls=(CALL,), weight=0.0),
        Message("tool", "there", tool_call_id="c1"),
        Message("assistant", "So."),
    )
    assert example.tools == tuple(row["tools"])


def test_older_function_calls_are_tool_calls() -> None:
    row = messages(
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
        {"role": "function", "name": "look", "content": "there"},
        ANSWER,
    )
    example = read(row)
    assert example.messages[1].tool_calls[0]["function"] == {"name": "look", "arguments": "{}"}
    assert example.messages[2].role == "tool"


def test_content_in_parts_is_joined_and_reasoning_put_before_it() -> None:
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "text", "text": "So"}, {"type": "text", "value": "."}]
    example = read(
        messages({"role": "user", "content": [{"type": "text", "text": "Why?"}]}, {**ANSWER, "content": parts})
    )
    assert [m.content for m in example.messages] == ["Why?", "<think>\nhm\n</think>\n\nSo."]


def test_mistrals_names_and_only_last_are_understood() -> None:
    row = {
        "interactions": [{"role": "user", "text": "a"}, {"role": "assistant", "text": "b"}, USER, ANSWER],
        "available_tools": [{"name": "look"}],
        "system_prompt": "Be brief.",
        "only_last": True,
    }
    example = read(row)
    assert [m.weight for m in example.messages if m.role == "assistant"] == [0.0, 1.0]
    assert example.messages[0] == Message("system", "Be brief.")
    assert example.tools[0]["function"]["name"] == "look"


def test_sharegpt_function_calls_and_observations_are_tools() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
            {"from": "observation", "value": "dry"},
            {"from": "gpt", "value": "No."},
        ],
        "tools": '[{"name": "weather", "parameters": {}}]',
        "system": "Be brief.",
    }
    example = read(row)
    assert [m.role for m in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert json.loads(example.messages[2].tool_calls[0]["function"]["arguments"]) == {"city": "Ulm"}
    assert example.tools[0]["type"] == "function"


def test_alpaca_joins_instruction_and_input_and_puts_history_first() -> None:
    row = {"instruction": "Add", "input": "1 and 2", "output": "3", "history": [["Hi", "Hello"]], "system": "Be brief."}
    assert [m.content for m in read(row).messages] == ["Be brief.", "Hi", "Hello", "Add\n\n1 and 2", "3"]


def test_an_empty_input_adds_nothing() -> None:
    assert read({"instruction": "Add", "input": "", "output": "3"}).messages[0].content == "Add"


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("prompt", "completion"),
        ("question", "answer"),
        ("instruction", "response"),
        ("query", "response"),
        ("input", "output"),
    ],
)
def test_the_usual_names_of_prompt_and_completion_are_known(prompt: str, completion: str) -> None:
    example = read({prompt: "Why?", completion: "So.", "extra": 1})
    assert example.messages == (Message("user", "Why?"), Message("assistant", "So."))


def test_a_number_as_answer_is_text() -> None:
    assert read({"question": "1 + 1?", "answer": 2}).answer == "2"


@pytest.mark.parametrize(("given", "label"), [(3, "3"), (3.0, "3"), (True, "true"), (" a b ", "a b")])
def test_labels_become_text(given: Any, label: str) -> None:
    assert read({"text": "x y", "label": given}, "classification").label == label


@pytest.mark.parametrize(
    "pair", [("premise", "hypothesis"), ("sentence1", "sentence2"), ("text", "text_pair")], ids="/".join
)
def test_pairs_of_texts_are_known(pair: tuple[str, str]) -> None:
    example = read({pair[0]: "It rains.", pair[1]: "It is wet.", "label": 1})
    assert isinstance(example, LabelExample)
    assert (example.text, example.text_pair, example.label) == ("It rains.", "It is wet.", "1")


def test_a_missing_label_is_a_fault() -> None:
    assert fault({"text": "x", "label": None}, "classification").code == "no_label"
    assert fault({"text": "x", "label": ["a"]}, "classification").code == "bad_label"


def test_equal_answers_cannot_be_preferred() -> None:
    found = fault({"prompt": "Why?", "chosen": "So.", "rejected": "So."}, "preference")
    assert (found.code, found.message) == ("same_answers", '"chosen" and "rejected" are the same text')


def test_preferences_between_whole_conversations_share_their_prompt() -> None:
    example = read({"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "No."}]})
    assert example == PreferenceExample(
        origin=ORIGIN, prompt=(Message("user", "Why?"),), chosen="So.", rejected="No.", fields={}
    )


def test_a_preference_without_a_prompt_is_a_fault() -> None:
    assert fault({"chosen": "a", "rejected": "b"}, "preference").code == "no_prompt"


@pytest.mark.parametrize(("label", "is_good"), [(True, True), ("false", False), (0, False), ("up", True)])
def test_thumbs_are_read_in_every_form(label: Any, is_good: bool) -> None:
    example = read({"prompt": "Why?", "completion": "So.", "label": label})
    assert isinstance(example, RatedExample)
    assert (example.answer, example.is_good) == ("So.", is_good)


def test_a_judged_conversation_must_end_with_an_answer() -> None:
    assert fault({"messages": [USER, ANSWER, USER], "label": True}, "rated").code == "no_assistant"


def test_lists_in_csv_cells_are_parsed() -> None:
    example = read({"messages": json.dumps([USER, ANSWER]), "tools": ""})
    assert isinstance(example, ChatExample) and example.answer == "So."
    assert fault({"messages": '[{"role": "user"'}).code == "invalid_json"

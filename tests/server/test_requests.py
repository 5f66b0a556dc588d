"""What a request may hold: bounds, unknown fields, and the words of each refusal."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tunesmith.server.errors import MAX_ECHO, invalid
from tunesmith.server.requests import ChatRequest, CompletionRequest, FeedbackRequest

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def refusal(model: type[Any], values: dict[str, Any]) -> tuple[str, str | None]:
    """The message and the parameter of the error for these values."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values, strict=True)
    error = invalid(caught.value.errors(include_url=False, include_context=False))
    return error.message, error.param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.01),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("n", 0),
        ("n", 9),
        ("n", 1.5),
        ("max_tokens", 0),
        ("max_completion_tokens", -1),
        ("top_logprobs", 3),
        ("seed", 2**63),
        ("stop", ""),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", ["a", ""]),
        ("messages", []),
        ("messages", [{"role": "robot", "content": "hi"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("model", ""),
        ("stream_options", {"include_usage": True}),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1.0}),
    ],
)
def test_a_chat_request_outside_its_bounds_is_refused_by_name(field: str, value: Any) -> None:
    message, _ = refusal(ChatRequest, HELLO | {field: value})
    assert field in message


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0, "top_p": 1, "n": 8, "stop": ["a", "b", "c", "d"], "seed": -5},
        {"temperature": 2.0, "presence_penalty": -2, "frequency_penalty": 2},
        {"logprobs": True, "top_logprobs": 20},
        {"logprobs": True},
        {"stream": True, "stream_options": {"include_usage": True, "something_new": 1}},
        {"max_tokens": None, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}},
        {"user": "u", "metadata": {"a": 1}, "service_tier": "auto", "a_field_of_tomorrow": [1]},
    ],
)
def test_what_clients_send_is_accepted(more: dict[str, Any]) -> None:
    ChatRequest.model_validate(HELLO | more, strict=True)


def test_the_newer_name_of_the_limit_wins() -> None:
    assert ChatRequest.model_validate(HELLO | {"max_tokens": 5, "max_completion_tokens": 7}).limit == 7
    assert ChatRequest.model_validate(HELLO | {"max_tokens": 5}).limit == 5


def test_parts_are_joined_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = ChatRequest.model_validate(HELLO | {"messages": [{"role": "developer", "content": parts}]})
    message = body.messages[0].to_message()
    assert (message.role, message.content) == ("system", "ab")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3)))],
)
def test_prompts_come_in_four_shapes(prompt: Any, expected: Any) -> None:
    assert CompletionRequest.model_validate({"model": "m", "prompt": prompt}, strict=True).prompts == expected


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": []},
        {"prompt": [-1]},
        {"prompt": ["a", 1]},
        {"prompt": ["a"] * 5, "n": 2},
        {"prompt": "a", "echo": True},
        {"prompt": "a", "suffix": "b"},
        {"prompt": "a", "logprobs": 6},
        {"prompt": "a", "best_of": 3},
    ],
)
def test_a_completion_outside_its_bounds_is_refused(values: dict[str, Any]) -> None:
    refusal(CompletionRequest, {"model": "m"} | values)


def test_at_most_ten_faults_are_told() -> None:
    messages = [{"role": "robot", "content": "x"} for _ in range(25)]
    message, param = refusal(ChatRequest, HELLO | {"messages": messages})
    assert message.count("messages[") == 10
    assert message.endswith("and 15 more")
    assert param == "messages[0].role"


def test_input_is_repeated_shortly() -> None:
    message, _ = refusal(ChatRequest, HELLO | {"messages": [{"role": "x" * 5000, "content": "x"}]})
    assert "x" * (MAX_ECHO - 10) in message
    assert "x" * (MAX_ECHO + 1) not in message


def test_feedback_must_say_something() -> None:
    message, _ = refusal(FeedbackRequest, {"request_id": "r"})
    assert "give a value, a correction, or both" in message
    assert FeedbackRequest.model_validate({"request_id": "r", "value": True}, strict=True).value is True
    assert FeedbackRequest.model_validate({"request_id": "r", "value": 1}, strict=True).value == 1
    assert FeedbackRequest.model_validate({"request_id": "r", "value": 0.5}, strict=True).value == 0.5

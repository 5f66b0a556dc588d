"""Render a conversation by a chat template: the model's own, or `PLAIN_TEMPLATE` where it has none.

A template is code that came with a model: it runs in transformers' immutable sandbox, here bounded in time and size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from tunesmith.core.errors import UserError
from tunesmith.core.records import Message
from tunesmith.data.timelimit import TimeUp, time_limit

PLAIN_TEMPLATE = """\
{{ bos_token if bos_token is defined and bos_token else '' }}\
{% for message in messages %}\
### {{ message.role | capitalize }}:
{{ message.content }}{{ eos_token if message.role == 'assistant' else '' }}

{% endfor %}\
{% if add_generation_prompt %}### Assistant:
{% endif %}"""
"""Used where a tokenizer has no template of its own, and saved with the trained model:

    ### User:
    What does error E07 mean?

    ### Assistant:
    The water tank is empty.</s>

Roles are headings, an answer starts on its own line (so it is tokenised alike with and without a prompt before it),
and the model's end-of-sequence token ends each answer.
"""

RENDER_SECONDS = 5.0
MAX_GROWTH = 50
"""A template may write so many times the characters it was given, beyond 100,000."""


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = False,
) -> str:
    """The conversation as text. Where a template has no place for tools, they are written in words.

    Raises:
        UserError: The template refuses the conversation, reaches for internals, or does not end.
    """
    return render(tokenizer, *plain_messages(tokenizer, messages, tools), add_generation_prompt)


def template_of(tokenizer: Any) -> str:
    """The tokenizer's own template, or the plain one."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):
        own = own.get("default")
    return own or PLAIN_TEMPLATE


def plain_messages(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    """Messages as templates take them; calls and tools become words where the template ignores them."""
    plain = [message.to_dict() for message in messages]
    template = template_of(tokenizer) if tools or any(message.tool_calls for message in messages) else ""
    if "tool_calls" in template:
        for message in plain:
            if "tool_calls" in message:
                message["tool_calls"] = [_with_object(call) for call in message["tool_calls"]]
    elif template:
        for message in plain:
            if calls := message.pop("tool_calls", None):
                words = "\n".join(_call_in_words(call) for call in calls)
                message["content"] = f"{message['content']}\n{words}" if message["content"] else words
    if tools and "tools" not in template:
        plain = _with_tools_in_words(plain, tools)
        tools = ()
    return plain, list(tools)


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call whose arguments are an object, as templates expect, not OpenAI's JSON text."""
    function = dict(call["function"])
    function["arguments"] = _arguments(function)
    return {**call, "function": function}


def _arguments(function: Mapping[str, Any]) -> Any:
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _call_in_words(call: Mapping[str, Any]) -> str:
    function = call["function"]
    value = {"name": function["name"], "arguments": _arguments(function)}
    return f"<tool_call>\n{json.dumps(value, ensure_ascii=False)}\n</tool_call>"


def _with_tools_in_words(plain: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    listing = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    words = (
        f"You may call these functions:\n<tools>\n{listing}\n</tools>\n"
        'Answer a call with <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'
    )
    if plain and plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{plain[0]['content']}\n\n{words}"}, *plain[1:]]
    return [{"role": "system", "content": words}, *plain]


def render(
    tokenizer: Any, plain: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], add_generation_prompt: bool
) -> str:
    """The template's text; it runs in transformers' immutable sandbox, here also bounded in time and size."""
    options: dict[str, Any] = {"tools": list(tools)} if tools else {}
    if not getattr(tokenizer, "chat_template", None):
        options["chat_template"] = PLAIN_TEMPLATE
    try:
        with time_limit(RENDER_SECONDS):
            text = tokenizer.apply_chat_template(
                list(plain), tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
    except TimeUp:
        raise _bad_template(f"it did not end within {RENDER_SECONDS:.0f} seconds") from None
    except (TemplateError, TypeError, ValueError, KeyError, OverflowError, MemoryError, RecursionError) as fault:
        raise _bad_template(str(fault).partition("\n")[0] or type(fault).__name__) from None
    given = sum(len(str(message)) for message in plain) + sum(len(str(tool)) for tool in tools)
    if not isinstance(text, str) or len(text) > 100_000 + MAX_GROWTH * given:
        raise _bad_template("it wrote far more than it was given")
    return text


def _bad_template(why: str) -> UserError:
    return UserError(
        f"the model's chat template refuses this conversation: {why}.",
        code="bad_template",
        remedy="Change the roles to what the template takes, or use another model's template.",
    )

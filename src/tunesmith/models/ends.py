"""Tokens that end an answer."""

from __future__ import annotations

from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.records import Message
from tunesmith.data.template import render_chat


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, the generation settings', and the chat template's end of turn."""
    given = getattr(model.generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(given if isinstance(given, list | tuple) else [given])}
    if getattr(tokenizer, "chat_template", None):
        ids.add(_end_of_turn(tokenizer))
    return frozenset(int(token) for token in ids if token is not None)


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the template puts right after an answer."""
    mark = "tunesmith"
    messages = [Message("user", "a"), Message("assistant", mark)]
    try:
        after = render_chat(tokenizer, messages).rpartition(mark)[2]
    except UserError:
        return None  # a template that refuses so plain a conversation has its end in the tokenizer
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None

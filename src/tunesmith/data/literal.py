"""Words of a message that spell a special token stay words: only the chat template's own tokens are special.

A tokenizer cannot tell a template's "<|im_end|>" from one that a user typed; taken for the token, it would end the
user's turn and let him write the next one. Where a message holds such words (hardly ever), the conversation is
tokenised by a twin of the tokenizer in which every special token is spelt otherwise, as only the template's are there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from tunesmith.core.errors import UserError
from tunesmith.data.render import render

Span = tuple[int, int]
_MARK = "\ue100{}\ue101"
"""Private-use characters around a special token's number, which stand for its words while a template runs."""
_MARKED = re.compile("\ue100(\\d+)\ue101")
_FIRST_SPELLING = 0x100000
"""Where the last plane of private-use characters begins: one for each special token."""


def literal_spans(
    tokenizer: Any,
    plain: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    text: str,
) -> list[Span]:
    """Where in the rendered `text` words of messages (or of tools) spell special tokens, in order.

    Raises:
        UserError: The template changes such words, so that they cannot be told from its own.
    """
    specials, pattern = _specials(tokenizer)
    if pattern is None or not any(pattern.search(words) for words in _strings([*plain, *tools])):
        return []
    numbers = {words: str(number) for number, words in enumerate(specials)}

    def mark(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda found: _MARK.format(numbers[found.group()]), value)
        if isinstance(value, Mapping):
            return {key: inner if key == "role" else mark(inner) for key, inner in value.items()}
        return [mark(inner) for inner in value] if isinstance(value, list | tuple) else value

    # A template may read an answer's own tokens ("</think>"); then those of the answers stay what they are.
    for spares_answers in (False, True):
        marked = [one if spares_answers and one["role"] == "assistant" else mark(one) for one in plain]
        shown, spans = _expanded(render(tokenizer, marked, mark(list(tools)), add_generation_prompt), specials)
        if shown == text:
            return spans
    raise UserError(
        "a message spells a special token of the model, and the chat template changes it on the way.",
        code="special_words",
        remedy="Take the words out of the message: " + ", ".join(specials[:8]),
    )


def tokenize(tokenizer: Any, text: str, literals: Sequence[Span] = ()) -> tuple[list[int], list[Span]]:
    """Token ids and each token's span of characters; special words within `literals` are tokenised as any others."""
    if not literals:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])
    specials, pattern = _specials(tokenizer)
    assert pattern is not None, literals
    spelling = {words: chr(_FIRST_SPELLING + i) * len(words) for i, words in enumerate(specials)}
    borders = [0, *(border for span in literals for border in span), len(text)]
    pieces = [text[start:end] for start, end in pairwise(borders)]
    pieces[::2] = [pattern.sub(lambda found: spelling[found.group()], piece) for piece in pieces[::2]]
    found = _twin(tokenizer, spelling).encode("".join(pieces), add_special_tokens=False)
    return list(found.ids), list(found.offsets)


def special_words(tokenizer: Any) -> list[str]:
    """How the tokenizer's special tokens are spelt, the longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return sorted({one.content for one in added if one.special and one.content}, key=lambda words: (-len(words), words))


_found: WeakKeyDictionary[Any, tuple[int, list[str], re.Pattern[str] | None]] = WeakKeyDictionary()
"""Special words by tokenizer, with its size then: a cache, never a setting."""


def _specials(tokenizer: Any) -> tuple[list[str], re.Pattern[str] | None]:
    known = _found.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        specials = special_words(tokenizer)
        pattern = re.compile("|".join(map(re.escape, specials))) if specials else None
        known = _found[tokenizer] = (len(tokenizer), specials, pattern)
    return known[1:]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _expanded(marked: str, specials: Sequence[str]) -> tuple[str, list[Span]]:
    """The text with the words in place of their marks, and where they stand."""
    pieces, spans, position, size = [], [], 0, 0
    for found in _MARKED.finditer(marked):
        words = specials[int(found.group(1))] if int(found.group(1)) < len(specials) else found.group()
        size += found.start() - position
        pieces += [marked[position : found.start()], words]
        spans.append((size, size + len(words)))
        position, size = found.end(), size + len(words)
    return "".join([*pieces, marked[position:]]), spans


_twins: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()
"""Twins by tokenizer, with its size then: a cache, never a setting."""


def _twin(tokenizer: Any, spelling: Mapping[str, str]) -> Any:
    """The tokenizer with its special tokens spelt otherwise; everything else of it, their numbers too, is the same."""
    from tokenizers import Tokenizer

    known = _twins.get(tokenizer)
    if known is not None and known[0] == len(tokenizer):
        return known[1]
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["content"] = spelling.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {spelling.get(word, word): number for word, number in model["vocab"].items()}
    else:
        model["vocab"] = [[spelling.get(word, word), score] for word, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = spelling.get(model["unk_token"], model["unk_token"])
    twin = Tokenizer.from_str(json.dumps(state))
    for words, other in spelling.items():
        assert twin.token_to_id(other) == tokenizer.convert_tokens_to_ids(words), (words, twin.token_to_id(other))
    _twins[tokenizer] = (len(tokenizer), twin)
    return twin

"""Examples to token ids and labels: the one way for training them and for scoring how likely they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.core.records import (
    ChatExample,
    Example,
    LabelExample,
    MultiLabelExample,
    NumberExample,
    PairExample,
)
from tunesmith.data.template import encode_chat
from tunesmith.objectives.base import IGNORED, Features


def text_features(text: str, tokenizer: Any, *, max_length: int) -> tuple[Features, ...]:
    """A text, every token of it scored; what is longer goes on in the next piece, after one token of context."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    starts = range(0, max(1, len(ids) - 1), max_length - 1)
    pieces = (ids[start : start + max_length] for start in starts)
    return tuple(Features(tuple(piece), (IGNORED, *piece[1:]), float(len(piece) - 1)) for piece in pieces)


def chat_features(example: ChatExample, tokenizer: Any, *, max_length: int, scores_all: bool = False) -> Features:
    """A conversation with the assistant's tokens scored, or all of them; cut from the right at `max_length`."""
    chat = encode_chat(tokenizer, example.messages, tools=example.tools, max_length=max_length)
    scored = zip(chat.input_ids, chat.is_trained, strict=True)
    labels = [token if scores_all or is_trained else IGNORED for token, is_trained in scored]
    labels[0] = IGNORED  # nothing stands before the first token
    weight = float(sum(label != IGNORED for label in labels))
    return Features(tuple(chat.input_ids), tuple(labels), weight, num_cut=chat.num_cut)


def head_features(
    example: LabelExample | MultiLabelExample | NumberExample,
    tokenizer: Any,
    *,
    max_length: int,
    labels: Sequence[int] = (),
    value: float = 0.0,
) -> Features:
    """A text, or a pair of texts, for a head that reads the whole row; cut from the right at `max_length`."""
    texts = (example.text, example.text_pair or None)
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, verbose=False)
    ids = tuple(encoded["input_ids"])
    num_cut = 0
    if len(ids) == max_length:
        num_cut = len(tokenizer(*texts, verbose=False)["input_ids"]) - max_length
    segments = tuple(encoded.get("token_type_ids", ()))
    return Features(ids, tuple(labels), 1.0, segments, num_cut=num_cut, value=value)


def pair_features(example: Example, tokenizer: Any, *, max_length: int) -> Features:
    """A source and its target with its end, each cut at `max_length`; every token of the target is scored."""
    source, target = source_and_target(example)
    source_ids = tokenizer(source, verbose=False)["input_ids"]
    whole_target = _with_end(tokenizer(text_target=target, verbose=False)["input_ids"], tokenizer.eos_token_id)
    num_cut = max(0, len(source_ids) - max_length) + max(0, len(whole_target) - max_length)
    target_ids = tuple(whole_target[:max_length])
    return Features(
        tuple(source_ids[:max_length]), target_ids, float(len(target_ids)), num_cut=num_cut, target_ids=target_ids
    )


def source_and_target(example: Example) -> tuple[str, str]:
    """The two texts of a pair, or of a conversation's last question and answer."""
    if isinstance(example, PairExample):
        return example.source, example.target
    assert isinstance(example, ChatExample), type(example)
    return "\n".join(message.content for message in example.prompt), example.answer


def _with_end(ids: Sequence[int], end: int | None) -> list[int]:
    return list(ids) if end is None or (ids and ids[-1] == end) else [*ids, end]

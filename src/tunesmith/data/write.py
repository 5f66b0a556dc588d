"""Examples as rows again: one canonical JSON object each, which its format reads back to an equal example."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tunesmith.core.records import (
    ChatExample,
    Example,
    LabelExample,
    Message,
    MultiLabelExample,
    NumberExample,
    PairExample,
    PreferenceExample,
    RatedExample,
    TagExample,
    TextExample,
)

FORMATS: dict[type[Example], str] = {
    TextExample: "text",
    ChatExample: "chat",
    LabelExample: "classification",
    MultiLabelExample: "multi_label",
    NumberExample: "regression",
    TagExample: "tags",
    PairExample: "pair",
    PreferenceExample: "preference",
    RatedExample: "rated",
}
"""The format that reads back what `row_of` makes of each kind of example."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)


def row_of(example: Example) -> dict[str, Any]:
    """The example as a row; unused columns follow, under another name where theirs is taken."""
    row = _columns(example)
    for name, value in example.fields.items():
        row[name if name not in row else f"field_{name}"] = value
    return row


def jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON Lines; values that JSON does not know (dates) become text."""
    return "".join(json_lines(rows))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of `jsonl`, one at a time."""
    return (_ENCODER.encode(row) + "\n" for row in rows)


def contents_sha256(examples: Iterable[Example]) -> str:
    """SHA-256 of the SHA-256 sums of the examples' canonical rows, in order; rows on disk know theirs (`sha256`)."""
    if known := getattr(examples, "sha256", ""):
        return str(known)
    digest = hashlib.sha256()
    for example in examples:
        digest.update(row_digest(example))
    return digest.hexdigest()


def row_digest(example: Example) -> bytes:
    """SHA-256 of the example's canonical row, 32 bytes."""
    return hashlib.sha256(_ENCODER.encode(row_of(example)).encode()).digest()


def _columns(example: Example) -> dict[str, Any]:
    match example:
        case TextExample():
            return {"text": example.text}
        case ChatExample():
            row: dict[str, Any] = {"messages": [_message(m) for m in example.messages]}
            return {**row, "tools": [dict(tool) for tool in example.tools]} if example.tools else row
        case LabelExample():
            pair = {"text_pair": example.text_pair} if example.text_pair else {}
            return {"text": example.text, **pair, "label": example.label}
        case MultiLabelExample():
            pair = {"text_pair": example.text_pair} if example.text_pair else {}
            return {"text": example.text, **pair, "labels": list(example.labels)}
        case NumberExample():
            pair = {"text_pair": example.text_pair} if example.text_pair else {}
            return {"text": example.text, **pair, "score": example.value}
        case TagExample():
            return {"tokens": list(example.words), "tags": list(example.tags)}
        case PairExample():
            return {"source": example.source, "target": example.target}
        case PreferenceExample():
            prompt = [_message(m) for m in example.prompt]
            return {"prompt": prompt, "chosen": example.chosen, "rejected": example.rejected}
        case RatedExample():
            messages = (*example.prompt, Message("assistant", example.answer))
            return {"messages": [_message(m) for m in messages], "label": example.is_good}
    raise AssertionError(type(example))


def _message(message: Message) -> dict[str, Any]:
    weight = {} if message.weight == 1 else {"weight": int(message.weight)}
    return {**message.to_dict(), **weight}

"""Feedback: judgements of served answers, listed, and exported as training data.

Thumbs become rated rows; a correction becomes an example to learn from and a pair, the correction over the answer.
Every row keeps the id of its request and the version that answered. Only requests whose text was kept can become
rows; how many could not is always said.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UserError, unknown_name
from tunesmith.core.events import Emit, Finished, Saved, Started
from tunesmith.core.home import Home
from tunesmith.core.publish import publishing
from tunesmith.core.quantities import count
from tunesmith.core.store import FeedbackRow, RequestRow, Store, split_reference

KINDS = {"sft": "sft.jsonl", "preference": "preference.jsonl", "rated": "rated.jsonl"}
"""What can be exported, and the file it goes to."""
THUMBS = "thumbs"
"""The judgement's name where 1 and 0 or -1 mean up and down; elsewhere 1 may be the worst of five."""
WORDS = {"up": True, "good": True, "down": False, "bad": False}
Row = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """A judgement with the request it is about."""

    feedback: FeedbackRow
    request: RequestRow

    @property
    def version(self) -> str:
        """`manual:3`, or the name alone where no registered version answered."""
        number = self.request.version
        return self.request.model if number is None else f"{self.request.model}:{number}"

    @property
    def is_exportable(self) -> bool:
        """Whether question and answer were kept."""
        return self.request.messages is not None and self.request.answers is not None

    def to_dict(self) -> dict[str, Any]:
        return {**self.feedback.to_dict(), "version": self.version, "is_text_kept": self.is_exportable}


@dataclass(frozen=True)
class Exported:
    """A published folder of judgements as training data."""

    path: Path
    num_rows: Mapping[str, int]
    """Rows per kind."""
    num_judgements: int
    num_without_text: int
    """Judgements of requests whose text was not kept."""

    def file(self, kind: str) -> Path:
        """The file of a kind."""
        return self.path / KINDS[kind]

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "rows": dict(self.num_rows),
            "files": {kind: str(self.file(kind)) for kind in self.num_rows},
            "judgements": self.num_judgements,
            "without_text": self.num_without_text,
        }


def list_feedback(home: Home, name: str = "") -> tuple[Judged, ...]:
    """All judgements, oldest first; of one served name where it is given."""
    with Store.open(home) as store:
        return tuple(Judged(feedback, request) for feedback, request in store.feedback(name))


def export(
    home: Home,
    name: str,
    *,
    out: str | Path | None = None,
    kinds: Sequence[str] = tuple(KINDS),
    emit: Emit,
) -> Exported:
    """The judgements of a served name as files to train on, in a folder that appears whole or not at all.

    Raises:
        UserError: There is no such judgement or kind, no text was kept, or `out` exists.
    """
    started = time.perf_counter()
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of feedback", kind, KINDS)
    name = split_reference(name)[0]
    emit(Started("feedback", f"judgements of {name}", {"name": name}))
    judged = list_feedback(home, name)
    rows = {kind: _ROWS[kind](judged) for kind in kinds}
    num_without_text = sum(not one.is_exportable for one in judged)
    if not any(rows.values()):
        raise _nothing(name, judged, num_without_text)
    target = Path(out) if out is not None else _free(home.path / "feedback", name)
    with publishing(target) as draft:
        for kind in kinds:
            if rows[kind]:
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[kind])
                (draft / KINDS[kind]).write_text(lines, encoding="utf-8")
    num_rows = {kind: len(found) for kind, found in rows.items() if found}
    exported = Exported(target, num_rows, len(judged), num_without_text)
    emit(Saved("feedback", str(target), "training data"))
    following = (f"tunesmith retrain {name} --data {exported.file('sft')}",) if "sft" in num_rows else ()
    emit(Finished("feedback", sentence(exported), time.perf_counter() - started, dict(num_rows), next=following))
    return exported


def sentence(exported: Exported) -> str:
    """`12 judgements: 3 sft, 3 preference, 9 rated rows; 2 without kept text`."""
    rows = ", ".join(f"{count(number)} {kind}" for kind, number in exported.num_rows.items())
    missing = f"; {count(exported.num_without_text)} without kept text" if exported.num_without_text else ""
    return f"{count(exported.num_judgements)} judgements: {rows} rows{missing}"


def thumb(feedback: FeedbackRow) -> bool | None:
    """A judgement as a thumb up or down, None where it is neither; a number is one only under the name "thumbs"."""
    value = feedback.value
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and feedback.name == THUMBS:
        return {1: True, 0: False, -1: False}.get(value)
    return WORDS.get(value) if isinstance(value, str) else None


def _sft(judged: Iterable[Judged]) -> list[Row]:
    return [
        {"messages": [*_context(one), _said(one.feedback.correction)], **_links(one)}
        for one in judged
        if one.is_exportable and one.feedback.correction.strip()
    ]


def _preference(judged: Iterable[Judged]) -> list[Row]:
    return [
        {"prompt": _context(one), "chosen": one.feedback.correction, "rejected": _answer(one), **_links(one)}
        for one in judged
        if one.is_exportable
        and one.feedback.correction.strip()
        and _answer(one).strip()
        and one.feedback.correction != _answer(one)
    ]


def _rated(judged: Iterable[Judged]) -> list[Row]:
    return [
        {"messages": [*_context(one), _said(_answer(one))], "label": thumb(one.feedback), **_links(one)}
        for one in judged
        if one.is_exportable and _answer(one).strip() and thumb(one.feedback) is not None
    ]


_ROWS = {"sft": _sft, "preference": _preference, "rated": _rated}


def _context(judged: Judged) -> list[Row]:
    """The conversation up to the judged answer; the model's own earlier turns are not to be learnt."""
    messages = [dict(message) for message in judged.request.messages or ()]
    return [{**message, "weight": 0} if message["role"] == "assistant" else message for message in messages]


def _answer(judged: Judged) -> str:
    answers = judged.request.answers or ()
    return answers[judged.feedback.choice] if judged.feedback.choice < len(answers) else ""


def _said(text: str) -> Row:
    return {"role": "assistant", "content": text}


def _links(judged: Judged) -> Row:
    return {
        "request_id": judged.request.id,
        "model_version": judged.version,
        "rater": judged.feedback.rater,
        "judged_at": judged.feedback.at,
    }


def _free(folder: Path, name: str) -> Path:
    number = 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"


def _nothing(name: str, judged: Sequence[Judged], num_without_text: int) -> UserError:
    if not judged:
        return UserError(
            f'there is no feedback on "{name}".',
            code="no_feedback",
            remedy="Judge an answer: POST /v1/feedback with its request_id.",
        )
    if num_without_text == len(judged):
        return UserError(
            f"none of the {count(len(judged))} judged requests has its text kept, so there is nothing to train on.",
            code="no_text",
            remedy=f"Keep the text of requests from now on: tunesmith serve {name} --keep-text",
        )
    return UserError(
        f"the {count(len(judged))} judgements hold neither a thumb nor a correction that could be exported.",
        code="no_feedback",
        remedy="A thumb is true or false; a correction is the text that would have been right.",
    )

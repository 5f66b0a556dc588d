"""Requests that were answered, and what people thought of the answers.

Metadata of a request is always kept; its text only where the user turned that on (the caller then fills
`messages` and `answers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from tunesmith.core.errors import UserError
from tunesmith.core.run import now
from tunesmith.core.store.database import Database
from tunesmith.core.store.records import FeedbackRow, RequestRow
from tunesmith.core.store.tables import feedback, requests

MAX_TEXT = 100_000
"""Characters of a comment or a correction."""


class JudgementStore(Database):
    """Requests and feedback."""

    def add_request(self, row: RequestRow) -> None:
        """Record one answered request.

        Raises:
            UserError: Its id was used before.
        """
        values = {
            "id": row.id,
            "model": row.model,
            "version": row.version,
            "endpoint": row.endpoint,
            "status": row.status,
            "finish_reason": row.finish_reason,
            "num_choices": row.num_choices,
            "num_prompt_tokens": row.num_prompt_tokens,
            "num_answer_tokens": row.num_answer_tokens,
            "seconds": row.seconds,
            "first_token_seconds": row.first_token_seconds,
            "messages": None if row.messages is None else [dict(message) for message in row.messages],
            "answers": None if row.answers is None else list(row.answers),
            "at": row.at or now(),
        }
        try:
            with self._writing() as connection:
                connection.execute(insert(requests).values(values))
        except UserError as fault:
            if isinstance(fault.__cause__, IntegrityError):
                raise UserError(f'the request "{row.id}" was recorded before.', code="exists") from None
            raise

    def request(self, request_id: str) -> RequestRow:
        """One recorded request.

        Raises:
            UserError: There is none with this id (code `unknown_request`).
        """
        with self._reading() as connection:
            row = connection.execute(select(requests).where(requests.c.id == request_id)).one_or_none()
        if row is None:
            raise _unknown_request(request_id)
        return _request(row)

    def request_counts(self, since: str) -> dict[tuple[str, int | None], int]:
        """How many requests each (model, version) answered since a time (UTC, as `core.run.now` writes it)."""
        statement = (
            select(requests.c.model, requests.c.version, func.count())
            .where(requests.c.at >= since)
            .group_by(requests.c.model, requests.c.version)
        )
        with self._reading() as connection:
            return {(row[0], row[1]): int(row[2]) for row in connection.execute(statement)}

    def give_feedback(self, row: FeedbackRow) -> FeedbackRow:
        """Record a judgement; the same rater's former one under the same name is replaced.

        Raises:
            UserError: The request is unknown, it has no such choice, or a text is too long.
        """
        for text, what in ((row.comment, "comment"), (row.correction, "correction")):
            if len(text) > MAX_TEXT:
                raise UserError(f"a {what} has at most {MAX_TEXT:,} characters, not {len(text):,}.", code="too_long")
        for key, limit in (("name", 64), ("rater", 128)):
            if len(getattr(row, key)) > limit:
                raise UserError(f"`{key}` has at most {limit} characters.", code="too_long")
        row = replace(row, at=now())
        columns = {name: getattr(row, name) for name in ("choice", "value", "comment", "correction", "at")}
        with self._writing() as connection:
            choices = connection.scalar(select(requests.c.num_choices).where(requests.c.id == row.request))
            if choices is None:
                raise _unknown_request(row.request)
            if not 0 <= row.choice < choices:
                raise UserError(
                    f"the request has {choices} choices, counted from 0; there is none {row.choice}.",
                    code="unknown_choice",
                )
            upsert = sqlite.insert if self._is_sqlite else postgresql.insert
            statement: Any = upsert(feedback).values(request=row.request, name=row.name, rater=row.rater, **columns)
            connection.execute(
                statement.on_conflict_do_update(index_elements=["request", "name", "rater"], set_=columns)
            )
        return row

    def feedback(self, model: str = "") -> tuple[tuple[FeedbackRow, RequestRow], ...]:
        """All judgements, each with its request, oldest first; of one registered name where it is given."""
        statement = select(feedback, *[column.label(f"r_{column.name}") for column in requests.c]).join(requests)
        if model:
            statement = statement.where(requests.c.model == model)
        with self._reading() as connection:
            rows: Sequence[Row[Any]] = connection.execute(
                statement.order_by(feedback.c.at, feedback.c.request, feedback.c.name, feedback.c.rater)
            ).all()
        return tuple((_feedback(row), _request(row, "r_")) for row in rows)


def _feedback(row: Row[Any]) -> FeedbackRow:
    return FeedbackRow(
        request=row.request,
        name=row.name,
        value=row.value,
        choice=row.choice,
        comment=row.comment,
        correction=row.correction,
        rater=row.rater,
        at=row.at,
    )


def _request(row: Row[Any], prefix: str = "") -> RequestRow:
    values = {column.name: getattr(row, prefix + column.name) for column in requests.c}
    for key in ("messages", "answers"):
        values[key] = None if values[key] is None else tuple(values[key])
    return RequestRow(**values)


def _unknown_request(request_id: str) -> UserError:
    return UserError(
        f"there is no request {request_id[:80]!r}.",
        code="unknown_request",
        remedy="Use the id of an answer of this server.",
    )

"""Judgements of served answers: list them, or export them as training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.session import Session
from tunesmith.reporters.text import Column, shorten, table

if TYPE_CHECKING:
    from tunesmith.steps.feedback import Judged

app = typer.Typer()


@app.command("list")
def list_(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(show_default=False, help="Only of this model.")] = "",
) -> None:
    """List judgements, oldest first.

    Example: tunesmith feedback list manual
    """
    from tunesmith.steps.feedback import list_feedback

    session: Session = ctx.obj
    judged = list_feedback(session.home, name)
    if not judged:
        session.say("no answer was judged yet; how: POST /v1/feedback with the answer's request_id")
    value = {"feedback": [one.to_dict() for one in judged]}
    session.result(value, text=_table(judged, session.width) if judged else "")


@app.command()
def export(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(show_default=False, help="The served model.")],
    out: Annotated[str, typer.Option(show_default=False, help="A new folder; else feedback/NAME-N.")] = "",
    kind: Annotated[
        list[str] | None, typer.Option(show_default="all", help="sft, preference or rated; may be repeated.")
    ] = None,
) -> None:
    """Export judgements as training data: corrections to learn from, pairs, and rated rows.

    Example: tunesmith feedback export manual --kind sft
    """
    from tunesmith.steps.feedback import KINDS
    from tunesmith.steps.feedback import export as run_step

    session: Session = ctx.obj
    exported = run_step(session.home, name, out=out or None, kinds=tuple(kind or KINDS), emit=session.emit)
    session.result(exported.to_dict(), text=str(exported.path))


def _table(judged: Sequence[Judged], width: int) -> str:
    columns = (
        Column("at", 3),
        Column("answered by", 6),
        Column("name", 4),
        Column("value", 9),
        Column("rater", 2),
        Column("question", 5),
        Column("correction or comment", 7),
        Column("request", 1),
    )
    return table(columns, [_row(one) for one in judged], width)


def _row(judged: Judged) -> tuple[str, ...]:
    from tunesmith.steps.feedback import thumb

    feedback, messages = judged.feedback, judged.request.messages
    verdict = thumb(feedback)
    asked = next((str(m["content"]) for m in reversed(messages or ()) if m["role"] == "user"), "")
    return (
        feedback.at,
        judged.version,
        feedback.name,
        str(feedback.value) if verdict is None else "up" if verdict else "down",
        feedback.rater or "–",
        shorten(asked, 40) if messages is not None else "(not kept)",
        shorten(feedback.correction or feedback.comment, 40) or "–",
        feedback.request,
    )

"""Score a run or a model on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.session import Session
from tunesmith.reporters.text import Column, count, duration, gib, interval, paint, shorten, table

if TYPE_CHECKING:
    from tunesmith.core.records import Score
    from tunesmith.steps.evaluate import Evaluation


def evaluate(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="A run, name@alias, name:version, a model, or http://host/v1#model.")],
    data: Annotated[
        str,
        typer.Option(metavar="FILE", show_default=False, help="Rows to score; otherwise the run's own held-out rows."),
    ] = "",
    metrics: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            show_default=False,
            help="Metrics, such as exact_match,f1:average=micro; otherwise by the rows.",
        ),
    ] = "",
    limit: Annotated[int, typer.Option(min=0, help="Score only the first so many rows; 0 scores all.")] = 0,
    answers: Annotated[
        str, typer.Option(metavar="FILE", show_default=False, help="Write every answer there, as JSONL.")
    ] = "",
) -> None:
    """Score a run or a model on held-out rows, with 95 % intervals.

    Example: tunesmith evaluate tunesmith/base --data heldout.jsonl --metrics fact_match,perplexity
    """
    from tunesmith.steps.evaluate import evaluate as run_step

    session: Session = ctx.obj
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    evaluation = run_step(target, data=data, metrics=names, limit=limit, emit=session.emit, home=session.home)
    if answers:
        _write_answers(evaluation, Path(answers))
    session.result(summary(evaluation), text=_text(evaluation, session.width))


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """What scripts read: `scores` by name, and the costs."""
    return {
        "scores": {score.metric: _score(score) for score in evaluation.scores},
        "num_rows": len(evaluation.outcomes),
        "seconds": evaluation.seconds,
        "seconds_per_answer": evaluation.seconds_per_answer,
        "peak_bytes": evaluation.peak_bytes,
    }


def _score(score: Score) -> dict[str, Any]:
    values: dict[str, Any] = {"value": score.value, "low": score.low, "high": score.high, "n": score.num_rows}
    if score.signature:
        values["signature"] = score.signature
    return {**values, "details": dict(score.details)}


def _text(evaluation: Evaluation, width: int) -> str:
    columns = [Column("metric", 9), Column("value", 9), Column("", 1)]
    rows = []
    for score in evaluation.scores:
        value, _, band = interval(score.value, score.low, score.high).partition(" ")
        signature = shorten(score.signature, max(10, width - 50)) if score.signature else ""
        rows.append([score.metric.replace("_", " "), f"{paint(value, 'bold')} {band}", signature])
    facts = [f"{count(len(evaluation.outcomes))} rows", f"{duration(evaluation.seconds)}"]
    if evaluation.seconds_per_answer is not None:
        facts.append(f"{evaluation.seconds_per_answer:.2g} s per answer, one by one")
    facts.append(f"peak {gib(evaluation.peak_bytes)}")
    return f"{table(columns, rows, width)}\n\n{' · '.join(facts)}"


def _write_answers(evaluation: Evaluation, path: Path) -> None:
    import json

    from tunesmith.core.publish import write_text

    lines = [json.dumps(outcome, ensure_ascii=False) for outcome in evaluation.to_dict()["outcomes"]]
    write_text(path, "\n".join(lines) + "\n")

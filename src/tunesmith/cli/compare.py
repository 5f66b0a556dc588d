"""Compare prompting, retrieval and fine-tuning on the same held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.flags import UsageError
from tunesmith.cli.session import Session
from tunesmith.reporters.text import (
    Column,
    duration,
    facts,
    fold,
    gib,
    interval,
    interval_bar,
    is_flat,
    natural_width,
    paint,
    table,
)

if TYPE_CHECKING:
    from tunesmith.steps.compare import Comparison

SHOWN = ("fixed", "broken", "wrong")
BAR_WIDTH, LEAST_BAR = 22, 8


def compare(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE [KEY=VALUE …]", show_default=False, help="A recipe and changes to it."),
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="DIR", show_default=False, help="Where to write; otherwise comparisons/NAME.")
    ] = "",
    open_: Annotated[
        str, typer.Option("--open", metavar="DIR", show_default=False, help="Show an earlier comparison again.")
    ] = "",
    jobs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Worker processes that share the cores; rows then run side by side.")
    ] = 1,
    show: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            show_default=False,
            help="Print the answers that were fixed or broken, or wrong in every row.",
        ),
    ] = "",
) -> None:
    """Prompting, retrieval and fine-tuning on the same rows: was it worth it?

    What is done is kept: the same command goes on where it was stopped.

    Example: tunesmith compare recipes/manual_compare.yaml --show broken
    """
    session: Session = ctx.obj
    if show and show not in SHOWN:
        raise UsageError(f'--show cannot be "{show}";', code="usage", remedy="use fixed, broken or wrong.")
    comparison = _open(open_, words) if open_ else _run(session, words, out, jobs)
    text = _answers_text(comparison, show, session.width) if show else result_text(comparison, session.width)
    session.result(comparison.to_dict(), text=text)


def result_text(comparison: Comparison, width: int) -> str:
    """The table, the verdict, what changed, and what to do next."""
    report = comparison.report
    best: Mapping[str, Any] = next((row for row in report["rows"] if row["name"] == report["verdict"]["best"]), {})
    lines = [comparison_table(report, width), "", fold(paint_verdict(comparison.verdict), width)]
    if "fixed" in best:
        changed = f"fixed by {best['name']} {len(best['fixed'])} · broken {len(best['broken'])}"
        if report["is_rate"]:
            changed += f" · wrong in every row {len(report['wrong_in_every_row'])}"
        lines.append(changed if is_flat(width) else " " * 9 + fold(changed, width, 9))
    next_command = f"tunesmith compare --open {comparison.path} --show {'broken' if best.get('broken') else 'wrong'}"
    lines += ["", facts([("page", str(comparison.path / "compare.html")), ("next", next_command)], width)]
    return "\n".join(lines)


def comparison_table(report: Mapping[str, Any], width: int) -> str:
    """One line per row: a drawn interval, the score, and what it cost. The drawing shrinks before a cost is dropped."""
    columns, rows = _table_parts(report, width, BAR_WIDTH)
    excess = natural_width(columns, rows) - width
    if excess > 0:
        columns, rows = _table_parts(report, width, max(LEAST_BAR, BAR_WIDTH - excess))
    return table(columns, rows, width)


def _table_parts(report: Mapping[str, Any], width: int, bar_width: int) -> tuple[list[Column], list[list[str]]]:
    key = report["metric"]
    scores = [row["scores"][key] for row in report["rows"]]
    lowest = 0.0 if report["is_rate"] else min(score["low"] for score in scores)
    highest = 1.0 if report["is_rate"] else max(score["high"] for score in scores)
    title = report["metric_title"]
    is_over_bar = len(title) <= bar_width and not is_flat(width)
    columns = [
        Column("", 9),
        Column(title if is_over_bar else "", 4, is_drawing=True),
        Column("" if is_over_bar else title, 9),
        Column("s/answer", 7, "right"),
        Column("train", 5, "right"),
        Column("memory", 2, "right"),
        Column("forgets", 3, "right"),
    ]
    rows = []
    for row, score in zip(report["rows"], scores, strict=True):
        bar = interval_bar(score["value"], score["low"], score["high"], bar_width, lowest, highest)
        value, _, band = interval(score["value"], score["low"], score["high"]).partition(" ")
        rows.append([row["name"], bar, f"{paint(value, 'bold')}  {band}", *_costs(row)])
    return columns, rows


def paint_verdict(text: str) -> str:
    """The verdict with its first words in the colour they mean."""
    head, colon, rest = text.partition(":")
    style = {"Worth it": "green", "Not worth it": "red", "Cannot be told": "yellow"}.get(head)
    return f"{paint(head, 'bold', style) if style else head}{colon}{rest}"


def _costs(row: Mapping[str, Any]) -> list[str]:
    seconds, train, forgets = row["seconds_per_answer"], row["train_seconds"], row["forgets"]
    return [
        "–" if seconds is None else f"{seconds:.2f}" if seconds >= 0.01 else f"{seconds:.1g}",
        "–" if train is None else duration(train),
        gib(row["peak_memory_bytes"]),
        "–" if forgets is None else f"{100 * forgets:+.1f} %".replace("-", "−"),
    ]


def _run(session: Session, words: Sequence[str] | None, out: str, jobs: int) -> Comparison:
    if not words:
        raise UsageError(
            "compare what?", code="usage", remedy="For example: tunesmith compare recipes/manual_compare.yaml"
        )
    from tunesmith.recipe import read_recipe
    from tunesmith.steps.compare import compare as run_step
    from tunesmith.steps.opening import with_named_run

    recipe = with_named_run(read_recipe(words[0], words[1:]), session.home.runs)
    folder = Path(out) if out else session.home.path / "comparisons" / recipe.name
    return run_step(recipe, emit=session.emit, out=folder, jobs=jobs)


def _open(folder: str, words: Sequence[str] | None) -> Comparison:
    if words:
        raise UsageError("--open shows an earlier comparison;", code="usage", remedy="leave the recipe out.")
    from tunesmith.steps.compare import Comparison

    return Comparison.open(Path(folder))


def _answers_text(comparison: Comparison, which: str, width: int) -> str:
    found = comparison.show(which)
    best = comparison.report["verdict"]["best"]
    title = {"fixed": f"fixed by {best}", "broken": f"broken by {best}", "wrong": "wrong in every row"}[which]
    blocks = [f"{len(found)} {comparison.report['noun']} {title}"]
    for one in found:
        lines = [("expected", one["reference"]), *((given["name"], _marked(given)) for given in one["answers"])]
        blocks.append(f"{paint(one['prompt'], 'bold')}\n{facts(lines, width)}")
    return "\n\n".join(blocks)


def _marked(given: Mapping[str, Any]) -> str:
    return ("✓ " if given["goodness"] > 0 else "✗ ") + (given["answer"] or "(nothing)")

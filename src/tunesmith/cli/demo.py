"""The whole circle on the built-in model and manual."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.compare import comparison_table, paint_verdict
from tunesmith.cli.session import Session
from tunesmith.reporters.text import Column, facts, fold, paint, table

if TYPE_CHECKING:
    from tunesmith.steps.demo import Demo


def demo(
    ctx: typer.Context,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where everything is written.")] = "demo",
) -> None:
    """The whole circle on the built-in model and manual, offline, in minutes.

    Example: tunesmith demo
    """
    from tunesmith.steps.demo import demo as run_step

    session: Session = ctx.obj
    result = run_step(Path(out), emit=session.emit)
    session.result(result.to_dict(), text=_text(result, session.width))


def _text(result: Demo, width: int) -> str:
    asked = [
        (paint("✓", "green") if one.is_right else paint("✗", "red"), one.question, f"→ {one.answer}")
        for one in result.answers
    ]
    columns = [Column("", 9), Column("asked the served model", 8), Column("", 7)]
    follow = f"tunesmith --home {result.path} chat manual@champion"
    places = [
        ("page", str(result.comparison.path / "compare.html")),
        ("model", f"{result.promotion.version.reference} in {result.promotion.version.folder}"),
        ("feedback", str(result.feedback.path)),
        ("recipe", str(result.path / "recipe.yaml")),
        ("next", follow),
    ]
    parts = [
        comparison_table(result.comparison.report, width),
        fold(paint_verdict(result.comparison.verdict), width),
        table(columns, asked, width),
        facts(places, width),
        str(result.path / "report.json"),
    ]
    return "\n\n".join(parts[:-1]) + "\n" + parts[-1]

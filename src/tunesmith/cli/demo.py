"""The whole circle on the built-in model and manual."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.compare import comparison_table, paint_verdict
from tunesmith.cli.session import Session
from tunesmith.reporters.text import facts, fold, paint

if TYPE_CHECKING:
    from tunesmith.steps.demo import Answer, Demo


def demo(
    ctx: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", show_default=False, help="Changes to its recipe, such as train.epochs=2."),
    ] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where everything is written.")] = "demo",
) -> None:
    """The whole circle on the built-in model and manual, offline, in minutes.

    Example: tunesmith demo
    """
    from tunesmith.steps.demo import demo as run_step

    session: Session = ctx.obj
    result = run_step(Path(out), overrides=overrides or (), emit=session.emit)
    session.result(result.to_dict(), text=_text(result, session.width))


def _text(result: Demo, width: int) -> str:
    asked = "\n".join(_exchange(one, width) for one in result.answers)
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
        f"asked the served model\n{asked}",
        facts(places, width),
        str(result.path / "report.json"),
    ]
    return "\n\n".join(parts[:-1]) + "\n" + parts[-1]


def _exchange(one: Answer, width: int) -> str:
    mark = paint("✓", "green") if one.is_correct else paint("✗", "red")
    return fold(f"{mark} {one.question} → {one.answer}", width, 2)

"""Train a recipe, or go on with a run that was stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.flags import UsageError
from tunesmith.cli.session import Session

if TYPE_CHECKING:
    from tunesmith.core.run import RunFolder


def train(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", show_default=False, help="A recipe (YAML).")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", show_default=False, help="Changes to it, such as train.lr=2e-4."),
    ] = None,
    resume: Annotated[
        str, typer.Option(metavar="RUN", show_default=False, help="Go on with this run instead, bit for bit.")
    ] = "",
) -> None:
    """Train a recipe; the result is a run folder.

    Ctrl-C finishes the step and saves; a second one stops at once.

    Example: tunesmith train recipes/manual_lora.yaml method.rank=32
    """
    session: Session = ctx.obj
    if resume:
        if recipe:
            raise UsageError("--resume takes its recipe from the run;", code="usage", remedy="leave the recipe out.")
        from tunesmith.core.run import RunFolder

        folder = RunFolder.open(resume)
        from tunesmith.steps.train import resume as go_on

        run = go_on(folder, emit=session.emit)
    elif recipe:
        from tunesmith.recipe import read_recipe

        checked = read_recipe(recipe, overrides or ())  # before torch is imported: a wrong key is told at once
        from tunesmith.steps.train import train as run_step

        run = run_step(checked, emit=session.emit, root=session.home.runs)
    else:
        raise UsageError("train what?", code="usage", remedy="For example: tunesmith train recipes/manual_lora.yaml")
    session.result(_summary(run), text=str(run.path))


def _summary(run: RunFolder) -> dict[str, Any]:
    """What scripts read: `run`, `steps`, `tokens_per_second` and `loss` (validation, of the kept weights)."""
    training = (run.read_json("report.json") or {}).get("training", {})
    return {
        "run": str(run.path),
        "steps": training.get("steps"),
        "tokens_per_second": training.get("tokens_per_second"),
        "loss": training.get("best_validation_loss"),
    }

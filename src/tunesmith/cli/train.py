"""Train a recipe, or go on with a run that was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            show_default=False,
            help="With --resume: let this setting or section differ from what the run began with.",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N", help="Train N times, with the recipe's seed and those after it; print mean and spread."
        ),
    ] = 1,
) -> None:
    """Train a recipe; the result is a run folder.

    Ctrl-C or SIGTERM finishes the step and saves; a second one stops at once. Both end with exit code 130.

    Example: tunesmith train recipes/manual_lora.yaml method.rank=32
    """
    session: Session = ctx.obj
    if seeds != 1:
        if resume or not recipe:
            raise UsageError("--seeds needs a recipe;", code="usage", remedy="a stopped one goes on with --resume.")
        _train_seeds(session, recipe, overrides or (), seeds)
        return
    if allow and not resume:
        raise UsageError("--allow goes with --resume;", code="usage", remedy="a new run may have any setting.")
    if resume:
        changes = [recipe, *(overrides or ())] if recipe else []
        if changes and "=" not in recipe:
            raise UsageError(
                "--resume takes its recipe from the run;",
                code="usage",
                remedy="leave the recipe out; a change is KEY=VALUE, with --allow KEY.",
            )
        if (Path(resume) / "seeds.json").is_file():
            if changes or allow:
                raise UsageError("the runs of several seeds are gone on with unchanged;", code="usage")
            from tunesmith.steps.seeds import resume_seeds

            report = resume_seeds(Path(resume), emit=session.emit)
            session.result(report.to_dict(), text=str(report.path))
            return
        from tunesmith.core.run import RunFolder

        folder = RunFolder.open(resume)
        from tunesmith.steps.train import resume as go_on

        run = go_on(folder, emit=session.emit, overrides=changes, allow=allow or ())
    elif recipe:
        from tunesmith.recipe import read_recipe

        checked = read_recipe(recipe, overrides or ())  # before torch is imported: a wrong key is told at once
        from tunesmith.steps.train import train as run_step

        run = run_step(checked, emit=session.emit, root=session.home.runs)
    else:
        raise UsageError("train what?", code="usage", remedy="For example: tunesmith train recipes/manual_lora.yaml")
    session.result(_summary(run), text=str(run.path))


def _train_seeds(session: Session, recipe: str, overrides: Sequence[str], seeds: int) -> None:
    from tunesmith.recipe import read_recipe

    checked = read_recipe(recipe, overrides)
    from tunesmith.steps.seeds import train_seeds

    report = train_seeds(checked, seeds, emit=session.emit, root=session.home.runs)
    session.result(report.to_dict(), text=str(report.path))


def _summary(run: RunFolder) -> dict[str, Any]:
    """What scripts read: `run`, `steps`, `tokens_per_second` and `loss` (validation, of the kept weights)."""
    training = (run.read_json("report.json") or {}).get("training", {})
    return {
        "run": str(run.path),
        "steps": training.get("steps"),
        "tokens_per_second": training.get("tokens_per_second"),
        "loss": training.get("best_validation_loss"),
    }

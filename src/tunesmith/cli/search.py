"""Search for better settings of a recipe, or for its learning rate alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.flags import UsageError
from tunesmith.cli.session import Session
from tunesmith.reporters.text import Column, duration, facts, fold, interval, number, paint, table

if TYPE_CHECKING:
    from tunesmith.steps.lr_range import RangeTest
    from tunesmith.steps.search import Search

NUM_SHOWN = 10
"""Trials in the table; all are in trials.csv."""


def search(  # noqa: PLR0913, PLR0917 - one argument for each flag
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE [KEY=VALUE …]", show_default=False, help="A recipe with ranges, and changes."),
    ] = None,
    trials: Annotated[
        int, typer.Option(metavar="N", min=0, show_default=False, help="How many settings are tried (search.trials).")
    ] = 0,
    jobs: Annotated[
        str, typer.Option(metavar="auto|N", help="Trials at once, in processes that share the cores; auto by room.")
    ] = "1",
    resume: Annotated[
        str,
        typer.Option(
            metavar="SEARCH", show_default=False, help="Go on with this search, with --trials N beyond its end."
        ),
    ] = "",
    lr_range: Annotated[
        bool, typer.Option("--lr-range", help="Only find a learning rate: raise it at each step until the loss breaks.")
    ] = False,
    low: Annotated[float, typer.Option(metavar="RATE", help="With --lr-range: the first learning rate.")] = 1e-6,
    high: Annotated[float, typer.Option(metavar="RATE", help="With --lr-range: the last learning rate.")] = 1.0,
    steps: Annotated[int, typer.Option(metavar="N", help="With --lr-range: how many steps.")] = 100,
) -> None:
    """The best settings found, and what was tried.

    Ranges stand beside a recipe's keys or in its `search.space`. Ctrl-C stops; --resume goes on.

    Example: tunesmith search recipes/manual_search.yaml --trials 12 --jobs auto
    """
    session: Session = ctx.obj
    if lr_range:
        if resume or not words:
            raise UsageError(
                "--lr-range needs a recipe;",
                code="usage",
                remedy="tunesmith search recipes/manual_lora.yaml --lr-range",
            )
        _find_rate(session, words, low, high, steps)
        return
    found = _resume(session, resume, words, trials, jobs) if resume else _search(session, words, trials, jobs)
    session.result(found.to_dict(), text=result_text(found, session.width))


def result_text(found: Search, width: int) -> str:
    """The best trials, what mattered, what the best gave when trained again, and what to do next."""
    report = found.report
    lines = [best_table(report, width)]
    counts = report["counts"]
    rest = len(report["trials"]) - min(NUM_SHOWN, counts["complete"])
    if rest:
        ends = f"{counts['pruned']} ended early, {counts['failed']} failed"
        lines.append(fold(f"and {rest} more ({ends}): {found.path}/trials.csv", width))
    if report["importance"]:
        shares = ", ".join(f"{key} {share:.2f}" for key, share in report["importance"].items())
        lines += ["", facts([("mattered", f"{shares} (share of variance)")], width)]
    run = report["best_run"]
    if run is not None:
        same = "as in the trial" if run["is_reproduced"] else f"in the trial {number(run['trial_validation_loss'], 6)}"
        many = report["best_run"]["held_out"]
        scores = " · ".join(
            f"{name.replace('_', ' ')} {interval(score['value'], score['low'], score['high'])}"
            for name, score in run["scores"].items()
        )
        again = f"validation loss {number(run['validation_loss'], 6)}, {same}"
        lines += ["", facts([("again", again), (f"{many['name'][:8]}", f"{scores} ({many['num_rows']} rows)")], width)]
    ends_with = [("page", f"{found.path}/search.html"), ("next", f"tunesmith train {found.best}")]
    return "\n".join([*lines, "", facts(ends_with, width)])


def best_table(report: Mapping[str, Any], width: int) -> str:
    """The best complete trials, one a line."""
    from tunesmith.reports.search_page import ranked
    from tunesmith.reports.search_plots import shown

    keys = [axis["key"] for axis in report["space"]]
    columns = [
        Column("trial", 9, "right"),
        Column(report["metric_title"], 8),
        *(Column(key, 7) for key in keys),
        Column("steps", 3, "right"),
        Column("took", 2, "right"),
    ]
    rows = []
    for trial in [one for one in ranked(report) if one["state"] == "complete"][:NUM_SHOWN]:
        is_best = trial["trial"] == report["best"]["trial"]
        value = number(trial["value"])
        rows.append(
            [
                str(trial["trial"]),
                paint(value, "bold", "green") if is_best else value,
                *(shown(trial["params"][key]) if key in trial["params"] else "–" for key in keys),
                f"{trial['steps']:,}",
                duration(trial["seconds"]),
            ]
        )
    return table(columns, rows, width)


def _search(session: Session, words: Sequence[str] | None, trials: int, jobs: str) -> Search:
    if not words:
        raise UsageError(
            "search what?", code="usage", remedy="For example: tunesmith search recipes/manual_search.yaml"
        )
    many = _jobs(jobs)
    from tunesmith.steps.search_plan import SearchPlan

    extra = [f"search.trials={trials}"] if trials else []
    plan = SearchPlan.read(words[0], [*words[1:], *extra])  # before torch is imported: a wrong range is told at once
    from tunesmith.steps.search import search as run_step

    return run_step(plan, emit=session.emit, root=session.home.path / "searches", jobs=many)


def _resume(session: Session, folder: str, words: Sequence[str] | None, trials: int, jobs: str) -> Search:
    if words:
        raise UsageError("--resume takes its recipe from the search;", code="usage", remedy="leave the recipe out.")
    from tunesmith.steps.search import resume as go_on

    return go_on(folder, emit=session.emit, trials=trials, jobs=_jobs(jobs))


def _jobs(text: str) -> int:
    """How many trials at once; 0 stands for auto."""
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f'--jobs cannot be "{text}";', code="usage", remedy="give auto or a number.")
    return int(text)


def _find_rate(session: Session, words: Sequence[str], low: float, high: float, steps: int) -> None:
    from tunesmith.core.overrides import apply_override
    from tunesmith.core.space import without_ranges
    from tunesmith.recipe import make_recipe, read_values

    values, locate = read_values(words[0], words[1:])
    apply_override(values, "train.lr=auto")  # it may be a range, and is what is looked for
    recipe = make_recipe(without_ranges(values, locate), locate=locate)
    from tunesmith.steps.lr_range import lr_range as run_step

    found = run_step(
        recipe, low=low, high=high, num_steps=steps, emit=session.emit, root=session.home.path / "searches"
    )
    session.result(found.to_dict(), text=_rate_text(found, words, session.width))


def _rate_text(found: RangeTest, words: Sequence[str], width: int) -> str:
    again = " ".join([words[0], *(word for word in words[1:] if not word.startswith("train.lr="))])
    lines = [
        (
            "rate",
            f"{paint(found.override, 'bold', 'green')}  the loss fell fastest there; lowest at {found.lowest:.2g}",
        ),
        ("plot", str(found.path / "lr_range.png")),
        ("next", f"tunesmith train {again} {found.override}"),
    ]
    return facts(lines, width)

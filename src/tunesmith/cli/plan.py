"""Memory and time of a recipe before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.session import Session
from tunesmith.reporters.text import Column, count, duration, facts, gib, is_flat, millions, paint, table

if TYPE_CHECKING:
    from tunesmith.steps.plan import Plan

TITLES = {"states": "frozen states", "process": "process", "optimizer": "optimiser"}


def plan(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", show_default=False, help="A recipe (YAML).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", show_default=False, help="Changes to it, such as train.micro_tokens=1024."),
    ] = None,
    machine: Annotated[
        str, typer.Option(metavar="NAME", show_default=False, help="Another machine: h100, a100x8, rtx4090, …")
    ] = "",
) -> None:
    """Say what a recipe takes in memory, time and disk, and what else would fit; no weight is loaded.

    The exit code is 1 where it does not fit.

    Example: tunesmith plan recipes/manual_lora.yaml --machine rtx4090
    """
    session: Session = ctx.obj
    from tunesmith.recipe import read_recipe

    checked = read_recipe(recipe, overrides or ())
    from tunesmith.steps.plan import plan as run_step

    found = run_step(checked, machine=machine, emit=session.emit, runs=session.home.runs)
    again = " ".join(["tunesmith train", recipe, *(overrides or ())])
    session.result(found.to_dict(), text=text_of(found, session.width, again))
    if not found.fits:
        raise typer.Exit(1)


def text_of(found: Plan, width: int, again: str = "") -> str:
    """The plan as a terminal shows it: the sentence, its parts, and what else would fit."""
    how = "measured with two real blocks" if found.estimate.is_probed else ""
    color = "green" if found.fits else "red"
    sentence = paint(found.sentence, "bold", color)
    lines = [sentence + (f", {how}" if how and len(found.sentence) + len(how) + 2 <= width else ""), ""]
    lines.append(facts(_facts(found), width))
    if found.alternatives:
        lines += ["", _alternatives(found, width)]
    next_steps = [] if not again else [("next", paint(_next(found, again), "cyan"))]
    notes = [("note" if not place else "", note) for place, note in enumerate(found.notes)]
    if notes or next_steps:
        lines += ["", facts([*notes, *next_steps], width)]
    return "\n".join(lines)


def _facts(found: Plan) -> list[tuple[str, str]]:
    estimate, sizes = found.estimate, found.estimate.sizes
    parts = [f"{TITLES.get(name, name)} {gib(size)}" for name, size in estimate.memory.parts().items() if size]
    layout = estimate.layout
    packed = "packed" if estimate.is_packed else "padded, in groups of like length"
    epochs = layout.num_steps / layout.steps_per_epoch
    times = " · ".join(f"{name} {duration(seconds)}" for name, seconds in estimate.times().items())
    again = f" · {estimate.num_recomputed} blocks computed again" if estimate.num_recomputed else ""
    after = ""
    if estimate.memory.publishing > estimate.memory.training_bytes:
        after = f" · the peak, {gib(estimate.memory.publishing)}, comes when the finished model is read beside"
    disk = f"{gib(found.disk_bytes)}" + (f" of {gib(found.disk_free_bytes)} free" if found.target.is_here else "")
    share = 100 * sizes.trainable / max(1, sizes.total)
    return [
        ("machine", f"{found.target.title} · {estimate.precision}"),
        ("memory", " · ".join(parts) + again + after),
        ("disk", disk),
        (
            "work",
            f"{epochs:.3g} epochs · {count(found.num_rows)} rows · {count(layout.num_steps)} optimiser steps of "
            f"{count(round(layout.tokens))} tokens, {packed} · {count(round(estimate.tokens_per_second))} tokens/s",
        ),
        ("time", times),
        ("trains", f"{millions(sizes.trainable)} of {millions(sizes.total)} parameters ({share:.3g} %)"),
    ]


def _alternatives(found: Plan, width: int) -> str:
    fitting = [one for one in found.alternatives if one.fits]
    others = [one for one in found.alternatives if not one.fits]
    head = "also fits" if found.fits else "would fit"
    rows = [
        (f"  {one.title}", gib(one.peak_bytes), duration(one.seconds), millions(one.trainable), " ".join(one.overrides))
        for one in fitting
    ]
    if others:
        rows.append(("does not fit", "", "", "", ""))
        rows += [
            (f"  {one.title}", gib(one.peak_bytes), duration(one.seconds), millions(one.trainable), "")
            for one in others
        ]
    if is_flat(width):
        rows = [row for row in rows if row[1]]
    columns = [
        Column(head, 5),
        Column("peak", 4, "right"),
        Column("time", 3, "right"),
        Column("trainable", 2, "right"),
        Column("set", 5 if not found.fits else 1),
    ]
    return table(columns, rows, width)


def _next(found: Plan, again: str) -> str:
    if found.fits:
        return again
    fitting = next((one for one in found.alternatives if one.fits), None)
    return " ".join([again, *fitting.overrides]) if fitting else "tunesmith plan --help"

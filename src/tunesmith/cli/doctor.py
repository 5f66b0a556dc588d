"""What is right and wrong with this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.session import Session
from tunesmith.reporters.text import cell_width, fold, is_flat, pad, paint

if TYPE_CHECKING:
    from tunesmith.steps.doctor import Check, Diagnosis

MARKS = {"good": ("✓", "green"), "note": ("·", "dim"), "warning": ("!", "yellow"), "problem": ("✗", "red")}
SPOKEN = {"good": "good", "note": "note", "warning": "warning", "problem": "problem"}
EDGE = 14


def doctor(
    ctx: typer.Context,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port that `tunesmith serve` would use.")] = 8321,
) -> None:
    """Say what is right and wrong with this machine. Nothing is asked of the network.

    The exit code is 1 where something must be mended.

    Example: tunesmith doctor
    """
    from tunesmith.steps.doctor import doctor as run_step

    session: Session = ctx.obj
    diagnosis = run_step(session.home, port=port, emit=session.emit)
    session.result(diagnosis.to_dict(), text=_text(diagnosis, session.width))
    if diagnosis.num_problems:
        raise typer.Exit(1)


def _text(diagnosis: Diagnosis, width: int) -> str:
    lines = [_line(check, width) for check in diagnosis.checks]
    return "\n".join([*lines, _verdict(diagnosis.num_problems, diagnosis.num_warnings)])


def _line(check: Check, width: int) -> str:
    label = "" if check.name == "packages" else check.name
    if is_flat(width):
        parts = (SPOKEN[check.level], label, check.text, check.remedy)
        return fold(": ".join(part for part in parts if part), width)
    mark, color = MARKS[check.level]
    head = f"{paint(mark, color)} " + (pad(label, EDGE) if label else "")
    edge = cell_width(head)
    text = fold(check.text, width - edge).replace("\n", "\n" + " " * edge)
    if not check.remedy:
        return head + text
    remedy = paint(check.remedy, "cyan")
    fits = "\n" not in text and cell_width(head + text + "   " + remedy) <= width
    return head + text + ("   " if fits else "\n" + " " * edge) + remedy


def _verdict(num_problems: int, num_warnings: int) -> str:
    parts = [(num_problems, "problem"), (num_warnings, "warning")]
    said = ", ".join(f"{many} {noun}{'s' if many > 1 else ''}" for many, noun in parts if many)
    return said or "nothing is wrong"

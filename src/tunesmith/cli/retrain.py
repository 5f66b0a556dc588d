"""Train a name's champion again with new data, and promote the result only if it is better."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.models import gate_lines
from tunesmith.cli.session import Session


def retrain(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(show_default=False, help="A registered name with a champion.")],
    data: Annotated[
        str, typer.Option(metavar="FILE", show_default=False, help="New rows; else the corrections given as feedback.")
    ] = "",
    margin: Annotated[float, typer.Option(min=0, max=1, help="How much worse the score's interval may reach.")] = 0.02,
) -> None:
    """Train the champion's recipe with new rows; promote it only if it beats what is served on the same held-out rows.

    The numbers are shown either way; a version that is not better stays registered, and the exit code is 0.

    Example: tunesmith retrain manual --data feedback/manual-1/sft.jsonl
    """
    from tunesmith.steps.retrain import retrain as run_step

    session: Session = ctx.obj
    result = run_step(session.home, name, data=data, margin=margin, emit=session.emit)
    session.say(gate_lines(result.gates, session.err.width))
    session.result(result.to_dict(), text=result.sentence)

"""Serve models with OpenAI's API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.session import Session

if TYPE_CHECKING:
    from tunesmith.steps.serve import Address


def serve(
    ctx: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="REF …",
            help="Registered names (name, name@alias, name:version), runs, model folders or tunesmith/base.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8321,
    keep_text: Annotated[
        bool, typer.Option("--keep-text", help="Record questions and answers too, so that corrections become data.")
    ] = False,
    max_running: Annotated[int, typer.Option(min=8, help="Sequences that generate at once.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are answered 503.")] = 64,
) -> None:
    """Serve models with OpenAI's API until Ctrl-C or SIGTERM; adapters share their base.

    Each model first answers its stored probes; one that does not answer as it was trained to is refused.
    When a name or an alias moves, the server follows. Prints its address on stdout when it is ready.

    Example: tunesmith serve tunesmith/base --port 8321
    """
    from tunesmith.server.settings import ServerSettings
    from tunesmith.steps.serve import serve as run_step

    session: Session = ctx.obj
    settings = ServerSettings(host=host, keep_text=keep_text, max_running=max_running, max_waiting=max_waiting)

    def ready(address: Address) -> None:
        session.result(address.to_dict(), text=address.url)

    run_step(session.home, models, port=port, settings=settings, emit=session.emit, on_ready=ready)

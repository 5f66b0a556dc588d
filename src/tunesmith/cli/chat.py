"""Talk to a run or a model in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.session import Session

if TYPE_CHECKING:
    from tunesmith.steps.chat import Conversation, Turn

HINT = "/reset starts anew · /quit or Ctrl-D leaves · Ctrl-C stops an answer"


def chat(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="REF", help="A run, a registered name (name, name@alias, name:version), a folder or tunesmith/base."
        ),
    ],
    system: Annotated[
        str, typer.Option(metavar="TEXT", show_default=False, help="A system message before everything.")
    ] = "",
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, show_default="the model's own", help="0 takes the likeliest token.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, show_default="the model's own", help="Longest answer in tokens.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the drawing of tokens.")] = 1,
) -> None:
    """Talk to a run or a model; it is loaded right here, no server is needed.

    Piped lines are questions of their own, each answered on one line of stdout.

    Example: echo 'What does error E07 mean?' | tunesmith chat tunesmith/base
    """
    from tunesmith.steps.chat import ChatSettings, open_conversation

    session: Session = ctx.obj
    settings = ChatSettings(system=system, temperature=temperature, max_new_tokens=max_tokens, seed=seed)
    conversation = open_conversation(session.home, model, settings=settings, emit=session.emit)
    session.emit.stop()
    if sys.stdin.isatty() and not session.is_json:
        _talk(session, conversation)
    else:
        _answer_lines(session, conversation)


def _talk(session: Session, conversation: Conversation) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it gives `input` its line editing and history
    session.say(f"{conversation.served.reference} · {HINT}")
    while True:
        try:
            question = input("you    ").strip()
        except EOFError:
            session.say()
            return
        except KeyboardInterrupt:
            session.say("\nCtrl-D leaves")
            continue
        if question in ("/quit", "/exit"):
            return
        if question == "/reset":
            conversation.reset()
            session.say("forgotten")
        elif question.startswith("/"):
            session.say(HINT)
        elif question:
            _show_answer(session, conversation, question)


def _show_answer(session: Session, conversation: Conversation, question: str) -> None:
    from tunesmith.core.errors import UserError

    stream = session.out.stream
    stream.write("model  ")
    stream.flush()
    pieces = conversation.ask(question)
    try:
        for text in pieces:
            stream.write(text)
            stream.flush()
    except KeyboardInterrupt:
        stream.write(" …")
    except UserError as fault:
        stream.write(fault.line())
    finally:
        getattr(pieces, "close", lambda: None)()
    stream.write("\n")
    stream.flush()


def _answer_lines(session: Session, conversation: Conversation) -> None:
    turns: list[Turn] = []
    for question in _questions():
        conversation.reset()
        turns.append(conversation.answer(question))
        session.print(" ".join(turns[-1].answer.split()))
    if session.is_json:
        session.result({"model": conversation.served.reference, "answers": [turn.to_dict() for turn in turns]})


def _questions() -> Iterator[str]:
    for line in sys.stdin:
        question = line.strip()
        if question == "/quit":
            return
        if question and question != "/reset":
            yield question

"""The command `tunesmith`: global flags, lazily imported commands, errors as one line and an exit code.

A command's module is imported when it is typed, so `tunesmith --help` needs neither typer nor pydantic nor torch.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from tunesmith.cli.flags import Flags, UsageError, read_flags
from tunesmith.core.errors import UserError, suggest
from tunesmith.reporters.text import Output, fold, is_flat, pad, paint
from tunesmith.reporters.third_parties import silence

if TYPE_CHECKING:
    from tunesmith.cli.session import Session

DONE, FIXABLE, USAGE, BUG, INTERRUPTED = 0, 1, 2, 70, 130

COMMANDS = {
    "demo": "the whole circle on the built-in model and manual, offline, in minutes",
    "data": "check, show or prepare rows before anything is trained",
    "plan": "memory and time of a recipe, before anything is loaded",
    "train": "train a recipe; the result is a run folder",
    "evaluate": "score a run or a model on held-out rows, with intervals",
    "compare": "prompting, retrieval and fine-tuning on the same rows: was it worth it?",
    "search": "the best settings of a recipe, or its learning rate",
    "models": "versions and aliases: list, show, register, promote, roll back, merge",
    "chat": "talk to a run or a model in the terminal",
    "serve": "serve models with OpenAI's API",
    "feedback": "list and export judgements of served answers",
    "retrain": "train again with new data; promote only what is better",
    "plugins": "every method, objective, metric … and its settings",
    "doctor": "what is right and wrong with this machine",
}
GROUPS = {
    "data": ("check", "show", "prepare"),
    "models": ("list", "show", "register", "promote", "rollback", "merge"),
    "feedback": ("list", "export"),
}
HELP_FLAGS = {"--help", "-h"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    silence(os.environ)
    _stop_on_sigterm()
    flags = Flags()
    out, err = Output(sys.stdout), Output(sys.stderr)
    try:
        flags, words = read_flags(sys.argv[1:] if argv is None else list(argv))
        out, err = Output(sys.stdout, color=flags.color), Output(sys.stderr, color=flags.color)
        return _run(flags, words, out, err)
    except BrokenPipeError:
        return _reader_left()
    except (Exception, KeyboardInterrupt) as fault:
        from tunesmith.cli.faults import report

        return report(fault, out, err, is_json=flags.is_json, is_debug=flags.is_debug)


def _stop_on_sigterm() -> None:
    """SIGTERM stops a command as Ctrl-C does: what is half-written goes, and the exit code is 130."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(flags: Flags, words: list[str], out: Output, err: Output) -> int:
    if flags.is_version:
        from tunesmith import __version__

        out.write(f"Tunesmith {__version__}")
        return DONE
    if not words or words[0] in HELP_FLAGS or words == ["help"]:
        (out if words else err).write(_help(out.width))
        return DONE if words else USAGE
    if words[0] == "help":
        words = [*words[1:], "--help"]
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        hint = suggest(name, COMMANDS).sentence() or "All commands: tunesmith --help"
        raise UsageError(f'there is no command "{name}";', code="unknown_command", remedy=hint)
    if name in GROUPS and not rest:
        rest = ["--help"]
    return _call(name, rest, _session(flags, out, err))


def _session(flags: Flags, out: Output, err: Output) -> Session:
    from tunesmith.cli.session import Session
    from tunesmith.reporters.choose import choose

    return Session(
        emit=choose(err, progress=flags.progress, events=flags.events, is_quiet=flags.is_quiet),
        out=out,
        err=err,
        is_json=flags.is_json,
        is_debug=flags.is_debug,
        is_quiet=flags.is_quiet,
        home_option=flags.home,
    )


def _call(name: str, rest: list[str], session: Session) -> int:
    import typer

    typed = command(name)
    usage: Any = typer.BadParameter.__mro__[2]  # ClickException, wherever this version of typer keeps it
    try:  # not `typed.main`, which would swallow an interruption and say nothing
        with session.emit, typed.make_context(f"tunesmith {name}", rest, obj=session) as context:
            typed.invoke(context)
    except usage as fault:
        message = _sentence(getattr(fault, "format_message", fault.__str__)())
        raise UsageError(message, code="usage", remedy=f"See: {_help_command(name, rest)}") from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    except typer.Exit as end:
        return int(end.exit_code)
    return DONE


def command(name: str) -> Any:
    """The command or group as typer runs it; its module is imported now (reports/reference.py prints its help)."""
    import importlib

    import typer

    module_name = f"tunesmith.cli.{name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as fault:
        if fault.name != module_name:
            raise
        raise UserError(f"`tunesmith {name}` is not part of this version.", code="not_built") from None
    settings = {"max_content_width": 100, "help_option_names": ["--help", "-h"]}
    app = getattr(module, "app", None) if name in GROUPS else None
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(name, context_settings=settings)(getattr(module, name))
    else:
        app.callback(help=(module.__doc__ or "").strip(), context_settings=settings)(_nothing)
    app._add_completion = False
    app.rich_markup_mode = None
    app.pretty_exceptions_enable = False
    return typer.main.get_command(app)


def _sentence(message: str) -> str:
    message = message.strip()
    return message if message.endswith((".", "?", "!")) else message + "."


def _nothing() -> None:
    """A group does nothing by itself."""


def _help_command(name: str, rest: Sequence[str]) -> str:
    inner = f" {rest[0]}" if name in GROUPS and rest and rest[0] in GROUPS[name] else ""
    return f"tunesmith {name}{inner} --help"


def _help(width: int) -> str:
    usage = "tunesmith COMMAND [ARGUMENTS] [KEY=VALUE …]"
    commands = [(paint(name, "cyan"), summary) for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            fold("Fine-tune language models on your own data, from the raw file to the served answer.", width),
            "",
            f"{paint('Usage', 'bold')}    {usage}",
            "",
            paint("Commands", "bold"),
            *_entries(commands, 12, width),
            "",
            paint("Anywhere", "bold"),
            *_entries(Flags.HELP, 29, width),
            "",
            fold("tunesmith COMMAND --help tells more, with an example that works.", width),
            fold("Start with: tunesmith demo", width),
        ]
    )


def _entries(pairs: Sequence[tuple[str, str]], edge: int, width: int) -> list[str]:
    if is_flat(width):
        return [fold(f"{name}: {text}", width, 2) for name, text in pairs]
    indent = "\n" + " " * (2 + edge)
    return [f"  {pad(name, edge)}{fold(text, width - edge - 2)}".replace("\n", indent) for name, text in pairs]


def _reader_left() -> int:
    """`| head` closed our stdout: what it wanted, it has."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


if __name__ == "__main__":
    sys.exit(main())

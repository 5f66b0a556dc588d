"""Flags that every command has; they may stand anywhere before a `--`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from tunesmith.core.errors import UserError


class UsageError(UserError):
    """The command line itself is wrong: exit code 2."""


@dataclass(frozen=True)
class Flags:
    """What the global flags say."""

    is_json: bool = False
    is_quiet: bool = False
    is_debug: bool = False
    is_version: bool = False
    events: Literal["", "jsonl"] = ""
    color: Literal["auto", "always", "never"] = "auto"
    progress: Literal["auto", "live", "lines", "none"] = "auto"
    home: str = ""

    HELP: ClassVar = (
        ("--json", "the result as one JSON object on stdout"),
        ("--quiet", "only warnings and errors on the way"),
        ("--events jsonl", "what happens on the way, one JSON object a line, on stderr"),
        ("--progress live|lines|none", "how progress is shown; chosen by the terminal otherwise"),
        ("--color auto|always|never", "auto honours NO_COLOR and FORCE_COLOR"),
        ("--home DIR", "where runs and models are kept; TUNESMITH_HOME, or here, otherwise"),
        ("--debug", "show the traceback of a bug"),
        ("--version", "the version"),
    )


SWITCHES = {"--json": "is_json", "--quiet": "is_quiet", "--debug": "is_debug", "--version": "is_version"}
CHOICES: dict[str, tuple[str, tuple[str, ...]]] = {
    "--events": ("events", ("jsonl",)),
    "--color": ("color", ("auto", "always", "never")),
    "--progress": ("progress", ("auto", "live", "lines", "none")),
    "--home": ("home", ()),
}


def read_flags(argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """The global flags, and the other words in order; nothing after `--` is looked at.

    Raises:
        UsageError: A flag has no value, or one that it does not know.
    """
    found: dict[str, Any] = {}
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            words += [word, *rest]
            break
        flag, equals, value = word.partition("=")
        if word in SWITCHES:
            found[SWITCHES[word]] = True
        elif flag in CHOICES:
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise UsageError(f"{flag} needs a value;", code="usage", remedy=_known(flag))
                value = rest.pop(0)
            name, known = CHOICES[flag]
            if known and value not in known:
                raise UsageError(f'{flag} cannot be "{value}";', code="usage", remedy=_known(flag))
            found[name] = value
        else:
            words.append(word)
    return replace(Flags(), **found), words


def _known(flag: str) -> str:
    known = CHOICES[flag][1]
    return f"it is one of {', '.join(known)}." if known else f"for example: {flag} ~/tunesmith"

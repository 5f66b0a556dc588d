"""Reference pages, written from the code: `python -m tunesmith.reports.reference docs/reference`.

tests/test_reference.py writes them anew and compares, so a page can neither be edited by hand nor grow old.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from tunesmith.core import events, plugins
from tunesmith.core.describe import Described, describe
from tunesmith.core.plugins import Plugin

NOTE = "<!-- Written by `make docs` from the code; edit the code instead. -->\n"
HELP_WIDTH = 100
WORDS = ("", "needed", "empty", "nothing")
"""Defaults that are said, not quoted."""


def pages() -> dict[str, str]:
    """Every page by its file name."""
    written = {"recipe.md": recipe_page(), "commands.md": commands_page(), "python.md": python_page()}
    written |= {"events.md": events_page(), "http.md": http_page()}
    written |= {f"{folder}.md": plugins_page(folder) for folder in plugins.KINDS if plugins.names(folder)}
    written["index.md"] = index_page(written)
    return written


def write(folder: Path) -> None:
    """Write all pages, and delete pages of what is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    written = pages()
    for old in folder.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")


def index_page(written: dict[str, str]) -> str:
    """The list of pages with their first sentences."""
    lines = ["Everything here is written from the code and checked by the tests.", ""]
    for name, text in sorted(written.items()):
        title, summary = text.removeprefix(NOTE).strip().split("\n\n")[:2]
        lines.append(f"- [{title.removeprefix('# ')}]({name}): {summary}")
    return _page("Reference", "\n".join(lines))


def recipe_page() -> str:
    """Every setting of a recipe, group by group."""
    from tunesmith.recipe import CompareRow, Recipe, SourceSettings

    parts = ["Everything that decides a run, in one YAML file: `tunesmith train recipe.yaml KEY=VALUE`."]
    groups: list[tuple[str, type[BaseModel]]] = [("", Recipe)]
    groups += [("data.source (as a list)", SourceSettings), ("compare.rows", CompareRow)]
    while groups:
        place, cls = groups.pop(0)
        fields = describe(cls)
        groups[:0] = [(f"{place}.{f.name}".strip("."), f.group) for f in fields if f.group is not None]
        parts += [f"## {place}" if place else "## The recipe", inspect.getdoc(cls) or "", _settings_table(fields)]
    return _page("The recipe", *parts)


def plugins_page(folder: str) -> str:
    """Every plug-in of a kind with its settings."""
    kind = plugins.KINDS[folder]
    names = plugins.names(folder)
    rows = [[f"[{name}](#{name})", plugins.summary(folder, name)] for name in names]
    parts = [f"Named in a recipe or a command at `{kind.place}`.", _table(["name", "what it is"], rows)]
    for name in names:
        cls = plugins.find(folder, name)
        module = inspect.getdoc(inspect.getmodule(cls)) or ""
        parts += [f"## {name}", module, _own_text(cls), _facts(cls), _settings_table(describe(cls))]
    return _page(folder.replace("_", " ").capitalize(), *parts)


def commands_page() -> str:
    """The help of every command."""
    from tunesmith.cli.main import COMMANDS

    parts = ["Results go to stdout, everything said on the way to stderr; `--json` gives one object."]
    for name in COMMANDS:
        for words, text in command_helps(name):
            parts += [f"## tunesmith {words}", f"```text\n{text.rstrip()}\n```"]
    return _page("Commands", *parts)


def python_page() -> str:
    """Every public name of `import tunesmith`."""
    import tunesmith

    parts = ["What `import tunesmith as ts` gives."]
    for name in sorted(getattr(tunesmith, "__all__", ())):
        value = getattr(tunesmith, name)
        if inspect.isclass(value):
            parts += [f"## {name}", inspect.getdoc(value) or "", *_members(value)]
        elif callable(value):
            parts += [f"## {name}", _signature(name, value), inspect.getdoc(value) or ""]
    return _page("The Python API", *parts)


def events_page() -> str:
    """The records that steps emit, as `--events jsonl` prints them."""
    parts = ["What steps say while they work; `--events jsonl` prints one JSON object for each on stderr."]
    for cls in get_args(events.Event):
        rows = [[f"`{f.name}`", f"`{f.type}`", _field_default(f)] for f in dataclasses.fields(cls)]
        parts += [f"## {cls.__name__}", inspect.getdoc(cls) or "", _table(["field", "type", "default"], rows)]
    return _page("Events", *parts)


def http_page() -> str:
    """The routes of the server."""
    from tunesmith.server.feedback import feedback_routes
    from tunesmith.server.health import health_routes
    from tunesmith.server.openai import openai_routes

    makers: tuple[Callable[[Any], Any], ...] = (openai_routes, feedback_routes, health_routes)
    parts = ["What `tunesmith serve` answers; requests and errors are OpenAI's."]
    for make in makers:
        for route in make(None).routes:
            verbs = " ".join(sorted(route.methods - {"HEAD"}))
            parts += [f"## {verbs} {route.path}", inspect.getdoc(route.endpoint) or ""]
    return _page("The HTTP API", *parts)


def command_helps(name: str) -> Iterator[tuple[str, str]]:
    """(words, help) of a command and of the commands of a group."""
    from tunesmith.cli.main import command

    top = command(name)
    yield name, _help(top, f"tunesmith {name}")
    for inner, part in sorted(getattr(top, "commands", {}).items()):
        yield f"{name} {inner}", _help(part, f"tunesmith {name} {inner}")


def _help(part: Any, words: str) -> str:
    context = part.context_class(part, info_name=words, terminal_width=HELP_WIDTH, max_content_width=HELP_WIDTH)
    return "\n".join(line.rstrip() for line in part.get_help(context).splitlines())


def _members(cls: type) -> Iterator[str]:
    for name, value in vars(cls).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
        if name.startswith("_") or not inspect.getdoc(function) or not inspect.isfunction(function):
            continue
        yield f"### {cls.__name__}.{name}"
        yield f"`.{name}`" if isinstance(value, property) else _signature(f".{name}", function)
        yield inspect.getdoc(function) or ""


def _signature(name: str, function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    return f"```python\n{name}{signature.replace(parameters=kept)}\n```"


def _own_text(cls: type) -> str:
    """The class's own docstring, not one that it inherits."""
    return inspect.cleandoc(cls.__dict__.get("__doc__") or "")


def _facts(cls: type[Plugin]) -> str:
    """Class attributes that a kind declares beside its settings: task, learning rate, what a metric needs."""
    kinds = [base for base in cls.__mro__ if issubclass(base, Plugin) and base is not Plugin]
    names = [name for base in kinds for name, hint in vars(base)["__annotations__"].items() if "ClassVar" in str(hint)]
    rows = []
    for name in dict.fromkeys(names):
        value = getattr(cls, name)
        if value not in (None, "", ()):
            shown = ", ".join(getattr(v, "__name__", str(v)) for v in value) if isinstance(value, tuple) else value
            rows.append(f"{name.replace('_', ' ')}: `{shown}`")
    return " · ".join(rows)


def _settings_table(fields: tuple[Described, ...]) -> str:
    if not fields:
        return "No settings."
    rows = [[f"`{f.name}`", f.takes, f.default if f.default in WORDS else f"`{f.default}`", f.text] for f in fields]
    return _table(["setting", "takes", "default", "meaning"], rows)


def _field_default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    return "needed" if field.default_factory is dataclasses.MISSING else "empty"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _page(title: str, *parts: str) -> str:
    body = "\n\n".join(part.strip() for part in parts if part.strip())
    return re.sub(r"[ \t]+\n", "\n", f"{NOTE}\n# {title}\n\n{body}\n")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference"))

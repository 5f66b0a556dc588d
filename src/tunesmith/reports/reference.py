"""Reference pages, written from the code: `python -m tunesmith.reports.reference docs/reference`.

tests/test_reference.py writes them anew and compares, so a page can neither be edited by hand nor grow old.
"""

from __future__ import annotations

import ast
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
CALLS = {"__call__": "", "__getitem__": "[…]"}
"""How special methods are written in use."""
WORDS = ("", "needed", "empty", "nothing")
"""Defaults that are said, not quoted."""


def pages() -> dict[str, str]:
    """Every page by its file name."""
    written = {"recipe.md": recipe_page(), "commands.md": commands_page(), "python.md": python_page()}
    written |= {"events.md": events_page(), "http.md": http_page()}
    written |= {f"{folder}.md": plugins_page(folder) for folder in plugins.KINDS if plugins.names(folder)}
    written["index.md"] = index_page(written)
    return written


MEASURED = {"matrix.md", "packing.md"}
"""Pages beside these that are made from tests' results (`make matrix`)."""


def write(folder: Path) -> None:
    """Write all pages, and delete pages of what is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    written = pages()
    for old in folder.glob("*.md"):
        if old.name not in written and old.name not in MEASURED:
            old.unlink()
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")


def index_page(written: dict[str, str]) -> str:
    """The list of pages with their first sentences."""
    lines = ["Everything here is written from the code and checked by the tests.", ""]
    for name, text in sorted(written.items()):
        title, summary = text.removeprefix(NOTE).strip().split("\n\n")[:2]
        lines.append(f"- [{title.removeprefix('# ')}]({name}): {summary}")
    lines.append("- [What works with what](matrix.md): every method × objective × architecture, as the tests found it.")
    lines.append("- [Which decoders are packed](packing.md): every model type of transformers that writes text, tried.")
    return _page("Reference", "\n".join(lines))


def recipe_page() -> str:
    """Every setting of a recipe, group by group."""
    from tunesmith.recipe import Recipe

    parts = ["Everything that decides a run, in one YAML file: `tunesmith train recipe.yaml KEY=VALUE`."]
    groups: list[tuple[str, type[BaseModel]]] = [("", Recipe)]
    shown: set[type[BaseModel]] = set()
    while groups:
        place, cls = groups.pop(0)
        if cls in shown:
            continue
        shown.add(cls)
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

    parts = [f"What `import tunesmith as ts` gives.\n\n{inspect.getdoc(tunesmith)}"]
    for name in sorted(tunesmith.__all__, key=str.swapcase):
        value = getattr(tunesmith, name)
        if inspect.ismodule(value):  # a package that is a verb or a mapping, too
            parts += [f"## {name}", *_members(type(value), name)]
        elif inspect.isclass(value):
            parts += [f"## {name}", inspect.getdoc(value) or "", *_members(value, name)]
        else:
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
    """The routes of the server with what their bodies take, read from its source: no server is needed."""
    from tunesmith.server import requests
    from tunesmith.server.settings import ServerSettings

    parts = ["What `tunesmith serve` answers; requests, streams and errors are OpenAI's."]
    for file in sorted((Path(plugins.__file__).parent.parent / "server").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        routes = [found for node in ast.walk(tree) if (found := _route(node))]
        if routes:
            parts.append(f"## {file.stem.capitalize()}\n\n{ast.get_docstring(tree)}")
        for words, body in routes:
            rows = [_body_row(field) for field in describe(getattr(requests, body))] if body else []
            parts += [f"### {words}", _table(["field", "takes", "default"], rows) if rows else ""]
    return _page("The HTTP API", *parts, "## Settings of the server", _settings_table(describe(ServerSettings)))


def _route(node: ast.AST) -> tuple[str, str] | None:
    """`GET /path` and the class of its body, if the function is a route."""
    if not isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
        return None
    match = [re.fullmatch(r"router\.(get|post|put|delete)\('([^']+)'\)", ast.unparse(d)) for d in node.decorator_list]
    bodies = re.findall(r"read_model\(request, (\w+)", ast.unparse(node))
    found = next(filter(None, match), None)
    return (f"{found[1].upper()} {found[2]}", bodies[0] if bodies else "") if found else None


def _body_row(field: Described) -> list[str]:
    return [f"`{field.name}`", field.takes.removesuffix(" or nothing"), field.default]


def command_helps(name: str) -> Iterator[tuple[str, str]]:
    """(words, help) of a command and of the commands of a group."""
    from tunesmith.cli.main import command

    top = command(name)
    yield name, _help(top, f"tunesmith {name}")
    for inner, part in sorted(getattr(top, "commands", {}).items()):
        yield f"{name} {inner}", _help(part, f"tunesmith {name} {inner}")


def _help(part: Any, words: str) -> str:
    context = part.context_class(
        part,
        info_name=words,
        terminal_width=HELP_WIDTH,
        max_content_width=HELP_WIDTH,
        help_option_names=["--help", "-h"],
    )
    return "\n".join(line.rstrip() for line in part.get_help(context).splitlines())


def _members(cls: type, owner: str) -> Iterator[str]:
    """Documented methods and properties; calling and indexing count as methods."""
    for name, value in vars(cls).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
        is_public = not name.startswith("_") or name in CALLS
        if not is_public or not inspect.isfunction(function) or not inspect.getdoc(function):
            continue
        shown = owner + CALLS.get(name, f".{name}")
        yield f"### `{shown}`" if isinstance(value, property) else _signature(shown, function)
        yield inspect.getdoc(function) or ""


def _signature(name: str, function: Callable[..., Any]) -> str:
    """The call as Python source, one parameter a line where it is long; annotations lose their quotes."""
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", f"{name}{signature.replace(parameters=kept)}")
    if len(text) > HELP_WIDTH:
        text = re.sub(r", (?=\*|\w+:)", ",\n    ", text).replace("(", "(\n    ", 1).replace(") ->", ",\n) ->")
    return f"```python\n{text}\n```"


def _own_text(cls: type) -> str:
    """The class's own docstring, not one that it inherits."""
    return inspect.cleandoc(cls.__dict__.get("__doc__") or "")


def _facts(cls: type[Plugin]) -> str:
    """Class attributes that a kind declares beside its settings: task, learning rate, what a metric needs."""
    kinds = [base for base in cls.__mro__ if issubclass(base, Plugin) and base is not Plugin]
    names = [name for base in kinds for name, hint in inspect.get_annotations(base).items() if "ClassVar" in str(hint)]
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

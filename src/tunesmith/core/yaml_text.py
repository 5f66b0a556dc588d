"""YAML with the place of every key, so that a fault is shown where it stands; aliases and repeated keys are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tunesmith.core.errors import UserError
from tunesmith.core.settings import Locate


class RecipeLoader(yaml.SafeLoader):
    """YAML with the words of version 1.2: only `true` and `false` are booleans, and `off` is the word `off`."""


RecipeLoader.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|false)$", re.IGNORECASE), list("tTfF")
)


def load_yaml(text: str) -> Any:
    """The plain values of a text."""
    return yaml.load(text, Loader=RecipeLoader)


def parse_yaml(text: str, path: Path) -> tuple[yaml.Node | None, Any]:
    """The syntax tree, for places, and the plain values."""
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 1
                where = f"{path}:{line}"
                raise UserError("aliases (*name) are not allowed in a recipe.", code="bad_recipe", where=where)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated_keys(node, path)
        return node, load_yaml(text)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"this is not YAML: {fault.problem}.", code="bad_yaml", where=where) from None
    except (yaml.YAMLError, ValueError) as fault:  # a control character, a date such as 2025-99-99
        reason = str(fault).partition("\n")[0].rstrip(".")
        raise UserError(f"this is not YAML: {reason}.", code="bad_yaml", where=str(path)) from None
    except RecursionError:
        raise UserError("this is nested too deeply for a recipe.", code="bad_yaml", where=str(path)) from None


def _refuse_repeated_keys(node: yaml.Node | None, path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                where = f"{path}:{key.start_mark.line + 1}"
                raise UserError("a key must be a word.", code="bad_yaml", where=where)
            if key.value in seen:
                where = f"{path}:{key.start_mark.line + 1}"
                raise UserError(f'"{key.value}" is set twice.', code="repeated_key", where=where, remedy="Keep one.")
            seen.add(key.value)
            _refuse_repeated_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_repeated_keys(value, path)


def locator(root: yaml.Node | None, text: str, path: Path) -> Locate:
    """A function from a path of keys to `file:line` and the lines to show, the key underlined."""
    lines = text.splitlines()

    def locate(keys: tuple[str | int, ...]) -> tuple[str, str]:
        node, mark = root, None
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                pair = next(((k, v) for k, v in node.value if k.value == str(key)), None)
                if pair is None:
                    break
                mark, node = pair[0].start_mark, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                mark = node.start_mark
        if mark is None:
            return str(path), ""
        first = max(0, mark.line - 1)
        shown = [f"{number + 1:>4} | {lines[number]}" for number in range(first, mark.line + 1)]
        shown.append(f"     | {' ' * mark.column}{'^' * len(str(keys[-1]))}")
        return f"{path}:{mark.line + 1}", "\n".join(shown)

    return locate

"""Plug-ins are files: `methods/lora.py` is the method "lora". The folder is the list.

Listing reads only the first line of each file's docstring, so `tunesmith plugins` needs no torch;
a plug-in module must itself import without torch (held by tests/test_layers.py).
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BeforeValidator, PlainSerializer

from tunesmith.core.errors import UserError, unknown_name
from tunesmith.core.settings import Settings, validate

PACKAGE = "tunesmith"
NOT_PLUGINS = {"__init__", "base"}


class Plugin(Settings):
    """The one class of a plug-in file: its fields are the settings, its methods the behaviour."""

    @property
    def name(self) -> str:
        """The name the user types: the file's, or the dotted module's for a plug-in from outside."""
        return plugin_name(type(self))

    def spec(self) -> dict[str, Any]:
        """The plug-in as a recipe writes it: `{name: lora, rank: 16, ...}`."""
        return {"name": self.name, **self.model_dump(mode="json")}


@dataclass(frozen=True)
class Kind:
    """A folder of plug-ins."""

    folder: str
    noun: str
    place: str
    """Where the recipe names one."""


KINDS = {
    kind.folder: kind
    for kind in (
        Kind("formats", "format", "data.format"),
        Kind("methods", "method", "method"),
        Kind("objectives", "objective", "objective"),
        Kind("prompting", "prompting", "compare.rows"),
        Kind("metrics", "metric", "evaluate"),
        Kind("optimizers", "optimizer", "train.optimizer"),
        Kind("launchers", "launcher", "launcher"),
        Kind("targets", "target", "export --to"),
    )
}


def kind_of(folder: str) -> Kind:
    """The kind by its folder's or its noun's name.

    Raises:
        UserError: There is no such kind.
    """
    for kind in KINDS.values():
        if folder in (kind.folder, kind.noun):
            return kind
    raise unknown_name("kind of plug-in", folder, KINDS, listing="tunesmith plugins")


def names(folder: str) -> list[str]:
    """The plug-ins of a kind, sorted; nothing is imported."""
    path = Path(__file__).parent.parent / folder
    return sorted(file.stem for file in path.glob("*.py") if file.stem not in NOT_PLUGINS)


def summary(folder: str, name: str) -> str:
    """The first line of the plug-in's docstring; nothing is imported."""
    source = (Path(__file__).parent.parent / folder / f"{name}.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source)) or ""
    return text.partition("\n")[0]


@cache
def find(folder: str, name: str) -> type[Plugin]:
    """The class of the plug-in `name`; a name with a dot is a module outside the package.

    Raises:
        UserError: No such plug-in, or its module cannot be imported, or has not exactly one class.
    """
    kind = KINDS[folder]
    if "." in name:
        try:
            module = importlib.import_module(name)
        except (ImportError, SyntaxError, TypeError) as fault:  # TypeError: a relative name such as "..x"
            raise UserError(
                f'the {kind.noun} "{name}" cannot be imported: {fault}.', code=f"unknown_{kind.noun}"
            ) from None
    elif name in names(folder):
        module = importlib.import_module(f"{PACKAGE}.{folder}.{name}")
    else:
        raise unknown_name(kind.noun, name, names(folder), listing=f"tunesmith plugins {folder}")
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Plugin) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise UserError(
            f'the {kind.noun} "{name}" must hold exactly one plug-in class, not {len(classes)}.', code="bad_plugin"
        )
    return classes[0]


def build(folder: str, spec: str | Mapping[str, Any] | Plugin) -> Any:
    """A plug-in from its name, or from `{name: …, setting: …}`.

    Raises:
        UserError: Unknown name or setting, or a bad value.
    """
    if isinstance(spec, Plugin):
        return spec
    kind = KINDS[folder]
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise UserError(f"a {kind.noun} is a name or a mapping with `name`, not {spec!r}.", code="bad_value")
    settings = {key: value for key, value in spec.items() if key != "name"}
    return validate(find(folder, spec["name"]), settings, place=kind.place)


def plugin_name(cls: type[Plugin]) -> str:
    """The name under which the recipe finds `cls`."""
    module = cls.__module__
    return module.rpartition(".")[2] if module.startswith(f"{PACKAGE}.") else module


def plugin(folder: str) -> tuple[Any, Any]:
    """Annotations of a settings field that holds a plug-in: `Annotated[Method, *plugin("methods")]`.

    "auto" passes unbuilt: a field that allows it says so (`… | Literal["auto"]`).
    """
    return (
        BeforeValidator(lambda spec: spec if spec == "auto" else build(folder, spec)),
        PlainSerializer(lambda value: value.spec(), return_type=dict),
    )

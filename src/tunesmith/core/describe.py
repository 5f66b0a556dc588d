"""Settings in words: what a field takes, its default and its meaning, as reference pages and terminal print them."""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tunesmith.core.plugins import KINDS, Plugin
from tunesmith.core.settings import Settings

BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "nothing"}
PAIR = 2


@dataclass(frozen=True)
class Described:
    """One setting in words; `group` is the class of a nested group of settings."""

    name: str
    takes: str
    default: str
    text: str
    group: type[Settings] | None = None


def describe(cls: type[BaseModel]) -> tuple[Described, ...]:
    """The settings of a class, in the order of its source."""
    return tuple(_field(name, field) for name, field in cls.model_fields.items())


def _field(name: str, field: FieldInfo) -> Described:
    bounds = _bounds(field.metadata)
    group = _group(field.annotation)
    text = field.description or (inspect.getdoc(group) or "" if group else "").partition("\n")[0]
    return Described(
        name=name,
        takes=_words(field.annotation) + (f", {bounds}" if bounds else ""),
        default=_default(field),
        text=" ".join(text.split()),
        group=group,
    )


def _group(annotation: Any) -> type[Settings] | None:
    """The class of settings that a field takes, alone, in a list, or as one of several things."""
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return None if issubclass(annotation, Plugin) else annotation
    return next((found for part in get_args(annotation) if (found := _group(part)) is not None), None)


def _words(annotation: Any) -> str:
    if inspect.isclass(annotation) and issubclass(annotation, Plugin):
        noun = next((kind.noun for kind in KINDS.values() if _stands_in(annotation, kind.folder)), "plug-in")
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "settings"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in inner)
    if hasattr(annotation, "__metadata__"):
        bounds = _bounds(annotation.__metadata__)
        return _words(annotation.__origin__) + (f" {bounds}" if bounds else "")
    if origin in (tuple, list):
        return f"list of {_words(inner[0])}"
    if origin is dict:
        return f"mapping from {_words(inner[0])} to {_words(inner[1])}" if len(inner) == PAIR else "mapping"
    return PLAIN.get(annotation, "anything" if annotation is Any else getattr(annotation, "__name__", str(annotation)))


def _stands_in(annotation: type, folder: str) -> bool:
    return annotation.__module__.split(".")[-2:-1] == [folder]


def _bounds(metadata: Any) -> str:
    parts = []
    for item in metadata:
        for key, sign in BOUNDS.items():
            value = getattr(item, key, None)
            if value is not None:
                parts.append(f"{sign} {value:g}")
    return " and ".join(parts)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "needed"
    if isinstance(value, BaseModel):
        return ""
    if value is None:
        return "nothing"
    if value == "":
        return "empty"
    return str(yaml.safe_dump(_plain(value), default_flow_style=True, width=1_000)).removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple) else value

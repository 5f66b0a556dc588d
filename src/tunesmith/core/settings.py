"""Settings: frozen pydantic classes whose faults become errors that name the right key.

The same class checks the YAML, the `key=value` overrides, the REST body and the form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tunesmith.core.errors import UserError, suggest

S = TypeVar("S", bound="Settings")
Locate = Callable[[tuple[str | int, ...]], tuple[str, str]]
"""From a key path to (`file:line`, a frame of source lines); both empty where unknown."""


@dataclass(frozen=True)
class Before:
    """Marks a setting that came later and whose default is not how things were before it."""

    value: Any
    """What a run that began before there was the setting goes on with."""


class Settings(BaseModel):
    """A frozen group of settings without unknown keys; the string below a field documents it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), validate_default=True
    )

    def changed(self) -> dict[str, Any]:
        """Only the fields that differ from their defaults, for short displays."""
        return {
            name: value
            for name, field in type(self).model_fields.items()
            if (value := getattr(self, name)) != field.get_default(call_default_factory=True)
        }


def validate(
    cls: type[S],
    values: Mapping[str, Any],
    *,
    place: str = "",
    locate: Locate | None = None,
    elsewhere: Mapping[str, list[str]] | None = None,
) -> S:
    """Build `cls` from plain values.

    `place` is the dotted name of this group in the recipe ("train"), empty at the top.
    `elsewhere` maps other places to their keys, for "`rank` is a setting of `method`".

    Raises:
        UserError: The first fault, with place, nearest right name and remedy.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as fault:
        raise _user_error(cls, fault, place, locate, elsewhere) from None


def _user_error(
    cls: type[Settings],
    fault: ValidationError,
    place: str,
    locate: Locate | None,
    elsewhere: Mapping[str, list[str]] | None,
) -> UserError:
    faults = fault.errors(include_url=False)
    branches = _branches(cls)
    paths = [tuple(part for part in one["loc"] if not _is_branch(part, branches)) for one in faults]
    number = next((i for i, one in enumerate(faults) if one["type"] == "extra_forbidden"), -1)  # a typo explains more
    if number < 0:  # of a union's branches, the one that the value is nearest to says most
        inside = [i for i, path in enumerate(paths) if path[: len(paths[0])] == paths[0]]
        number = max(inside, key=lambda i: len(paths[i]))
    first, path = faults[number], paths[number]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return cause
    where, frame = locate(path) if locate else ("", "")
    key = str(path[-1]) if path else ""
    group = ".".join([part for part in (place, *map(str, path[:-1])) if part]) or "the recipe"
    if first["type"] == "extra_forbidden":
        known = _fields_at(cls, path[:-1])
        listing = "Its settings: " + ", ".join(known) + "." if known else "It has no settings."
        hint = suggest(key, known, elsewhere).sentence() or listing
        return UserError(
            f'"{key}" is not a setting of {group};', code="unknown_setting", where=where, remedy=hint, frame=frame
        )
    name = ".".join([part for part in (place, *map(str, path)) if part])
    if first["type"] == "missing":
        return UserError(
            f"`{name}` is missing.", code="missing_setting", where=where, remedy=f"Set `{name}`.", frame=frame
        )
    given = first.get("input")
    shown = f"{given!r}"[:80]
    return UserError(
        f"`{name}` cannot be {shown}: {first['msg'].removeprefix('Value error, ')}.",
        code="bad_value",
        where=where,
        frame=frame,
    )


def _is_branch(part: str | int, branches: set[str]) -> bool:
    """Whether pydantic put the branch of a union into the place (`literal['auto']`, `constrained-float`, a class)."""
    if isinstance(part, int):
        return False
    plain = part.startswith("constrained-") or part in ("int", "float", "str", "bool")
    return plain or "[" in part or part in branches


def _branches(cls: type[BaseModel]) -> set[str]:
    """The names of the settings' classes anywhere inside a class."""
    found: set[str] = set()
    waiting: list[Any] = [field.annotation for field in cls.model_fields.values()]
    while waiting:
        one = waiting.pop()
        waiting += getattr(one, "__args__", ())
        if isinstance(one, type) and issubclass(one, BaseModel) and one.__name__ not in found:
            found.add(one.__name__)
            waiting += [field.annotation for field in one.model_fields.values()]
    return found


def _fields_at(cls: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    current: type[BaseModel] = cls
    for part in path:
        if isinstance(part, int):  # of a list, whose class was found with its key
            continue
        field = current.model_fields.get(part)
        found = _class_in(field.annotation) if field else None
        if found is None:
            break
        current = found
    return list(current.model_fields)


def _class_in(annotation: Any) -> type[BaseModel] | None:
    """The class of settings in an annotation: alone, in a list, or as one of several things."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((one for part in getattr(annotation, "__args__", ()) if (one := _class_in(part)) is not None), None)

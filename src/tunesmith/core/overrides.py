"""Changes to plain recipe values by dotted keys: `train.lr=2e-4` on the command line, a trial's values in a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from tunesmith.core.errors import UserError
from tunesmith.core.settings import Locate
from tunesmith.core.yaml_text import load_yaml

_DEFAULTS = {"method": "lora", "optimizer": "adamw"}
"""What a recipe takes where it names none, so that one of its settings can be given alone."""


def apply_override(values: dict[str, Any], override: str) -> None:
    """Apply `train.lr=2e-4` to plain recipe values, in place; the right side is YAML.

    Raises:
        UserError: It is not of the form KEY=VALUE.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(
            f'"{override}" is not of the form KEY=VALUE;', code="bad_override", remedy="for example: method.rank=32"
        )
    try:
        value = load_yaml(text) if text else ""
    except yaml.YAMLError:
        value = text
    put(values, key.strip(), value)


def among_overrides(locate: Locate, overrides: Sequence[str]) -> Locate:
    """`locate`, which of a key that an override set names that override instead of the file."""
    if not overrides:
        return locate
    keys = [tuple(override.partition("=")[0].strip().split(".")) for override in overrides]

    def located(path: tuple[str | int, ...]) -> tuple[str, str]:
        words = tuple(map(str, path))
        for key, override in reversed(list(zip(keys, overrides, strict=True))):
            if words[: len(key)] == key:
                return f"the override {override}", ""
        return locate(path)

    return located


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of plain recipe values, in place; `method.rank` of a method named in short makes it long."""
    *groups, last = key.split(".")
    current = values
    for group in groups:
        inner = current.get(group)
        if isinstance(inner, str):
            inner = {"name": inner}
        elif not isinstance(inner, dict):
            inner = {"name": _DEFAULTS[group]} if group in _DEFAULTS and inner is None else {}
        current[group] = inner
        current = inner
    current[last] = value

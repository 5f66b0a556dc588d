"""Changes to plain recipe values by dotted keys: `train.lr=2e-4` on the command line, a trial's values in a search."""

from __future__ import annotations

from typing import Any

import yaml

from tunesmith.core.errors import UserError

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
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        value = text
    put(values, key.strip(), value)


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

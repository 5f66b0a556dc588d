"""Short forms of a recipe's plain values, made long: a name for a plug-in, a path for a source.

Faults are told with the place of the key that caused them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import Plugin, build
from tunesmith.core.settings import Locate


def long_data(data: Mapping[str, Any], locate: Locate | None) -> dict[str, Any]:
    """The section `data`, with its formats and the objectives of its sources built."""
    full = dict(data)
    if full.get("format", "auto") != "auto":
        full["format"] = build_at("formats", full["format"], ("data", "format"), locate)
    if isinstance(full.get("source"), list | tuple):
        full["source"] = [_long_source(source, i, locate) for i, source in enumerate(full["source"])]
    return full


def _long_source(source: Any, index: int, locate: Locate | None) -> Any:
    full = {"path": source} if isinstance(source, str) else source
    if not isinstance(full, Mapping):
        return full
    full = dict(full)
    for key, folder in (("objective", "objectives"), ("format", "formats")):
        if full.get(key, "auto") != "auto":
            full[key] = build_at(folder, full[key], ("data", "source", index, key), locate)
    return full


def long_compare_row(row: Any, index: int, locate: Locate | None) -> Any:
    """A row of `compare.rows`; a name alone is a way of prompting."""
    full = {"prompting": row} if isinstance(row, str) else row
    if not isinstance(full, Mapping):
        return full
    full = dict(full)
    if isinstance(full.get("model"), str):
        full["model"] = {"name": full["model"]}
    for key, folder in (("prompting", "prompting"), ("method", "methods")):
        if full.get(key) is not None:
            full[key] = build_at(folder, full[key], ("compare", "rows", index, key), locate)
    return full


def build_at(folder: str, spec: Any, path: tuple[str | int, ...], locate: Locate | None) -> Plugin:
    """A plug-in from what stands at `path` of a recipe.

    Raises:
        UserError: As `build`, with the place of the wrong key.
    """
    try:
        built: Plugin = build(folder, spec)
        return built
    except UserError as fault:
        if locate is None or fault.where:
            raise
        keys = list(spec) if isinstance(spec, dict) else []
        wrong = [k for k in keys if f'"{k}"' in fault.message or f".{k}`" in fault.message] or keys[:1]
        where, frame = locate((*path, *wrong[:1]))
        raise UserError(fault.message, code=fault.code, where=where, remedy=fault.remedy, frame=frame) from None

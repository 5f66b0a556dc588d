"""The card of a prepared data set: the settings it records, and the same in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.recipe import DataSettings


def recorded_settings(settings: DataSettings) -> dict[str, Any]:
    """The settings that shaped the rows, paths by their names only."""
    values = settings.model_dump(mode="json")
    for key in ("validation", "test", "documents"):
        values[key] = Path(values[key]).name if values[key] else ""
    source = values["source"]
    values["source"] = (
        Path(source).name if isinstance(source, str) else [{**one, "path": Path(one["path"]).name} for one in source]
    )
    return values


def card_in_words(card: Mapping[str, Any]) -> str:
    """The card as README.md of the data set."""
    rows = card["rows"]
    lines = [
        "# Data card",
        "",
        f"{rows['train']:,} training, {rows['validation']:,} validation and {rows['test']:,} test rows "
        f"({card['format']}; read as {card['read_as']}), made by `tunesmith data prepare` with seed {card['seed']}.",
        "",
        "| file | bytes | SHA-256 |",
        "| --- | ---: | --- |",
        *(f"| {file['name']} | {file['bytes']:,} | `{file['sha256']}` |" for file in card["files"]),
        "",
        f"{rows['read']:,} rows were read.",
        *(f"{number:,} were left out: {reason}." for reason, number in card["left_out"].items()),
    ]
    if card["labels"]:
        lines += ["", f"{len(card['labels'])} labels: " + ", ".join(card["labels"]) + "."]
    if card["findings"]:
        lines += ["", "| finding | level | rows |", "| --- | --- | ---: |"]
        lines += [f"| {one['code']} | {one['level']} | {one['rows']:,} |" for one in card["findings"]]
    return "\n".join(lines) + "\n"

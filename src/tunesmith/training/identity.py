"""What decides a run's numbers, and how it differs when the run is gone on with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import Plugin
from tunesmith.core.settings import Before, Settings

FREE = ("name", "launcher", "compare", "search", "train.checkpoints", "train.trackers", "train.snapshot")
"""Settings that decide no number of a training; they may differ."""
_LONGEST = 60


@dataclass(frozen=True)
class Difference:
    """One setting that is not what it was; a plain value, or None where there was or is none."""

    setting: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.setting}: {_short(self.was)} → {_short(self.now)}"


def differences(was: Any, now: Any, place: str = "", *, is_known_only: bool = False) -> list[Difference]:
    """All places where two plain values differ, in order of their names; `is_known_only`: where `was` has them."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        keys = sorted(was if is_known_only else {*was, *now})
        pairs = [(f"{place}.{key}" if place else str(key), was.get(key), now.get(key)) for key in keys]
    elif _are_groups(was, now):
        pairs = [(f"{place}.{i}", a, b) for i, (a, b) in enumerate(zip(was, now, strict=True))]
    else:
        was, now = (list(value) if isinstance(value, tuple) else value for value in (was, now))
        return [] if was == now else [Difference(place, was, now)]
    return [one for name, *ab in pairs for one in differences(ab[0], ab[1], name, is_known_only=is_known_only)]


def completed(known: Mapping[str, Any], settings: Settings, place: str = "") -> tuple[dict[str, Any], list[Difference]]:
    """Plain values of settings with all that they lack, as an older version wrote them; and what that is.

    A missing setting is what `Before` says of it, else its default. Of plug-ins `settings` says which they are.
    """
    filled, added = dict(known), []
    fields = type(settings).model_fields
    usual: dict[str, Any] | None = None
    for name, field in fields.items():
        here, inner = f"{place}.{name}" if place else name, getattr(settings, name)
        if name in known:
            filled[name], found = _completed_inside(known[name], inner, here)
            added += found
        elif isinstance(inner, Settings) and not isinstance(inner, Plugin):
            filled[name], found = completed({}, inner, here)
            added += found
        else:
            if usual is None:
                given = {key: getattr(settings, key) for key in fields if key in known or fields[key].is_required()}
                usual = type(settings).model_validate(given).model_dump(mode="json")
            marks = [mark.value for mark in field.metadata if isinstance(mark, Before)]
            filled[name] = marks[0] if marks else usual[name]
            added.append(Difference(here, None, filled[name]))
    return filled, added


def is_covered(setting: str, names: Sequence[str]) -> bool:
    """Whether one of the names is the setting, or a section that it lies in."""
    return any(setting == name or setting.startswith(f"{name}.") for name in names)


def refuse_differences(found: Sequence[Difference], *, allowed: Sequence[str], run: str, about: str) -> None:
    """Let a run be gone on with only as what it began with, but for what was allowed by name.

    Raises:
        UserError: Something else differs; all of it is listed.
    """
    wrong = [one for one in found if not is_covered(one.setting, [*FREE, *allowed])]
    if not wrong:
        return
    names = list(dict.fromkeys(one.setting for one in wrong))
    command = shlex.join(
        ["tunesmith", "train", "--resume", run, *(word for name in names for word in ("--allow", name))]
    )
    raise UserError(
        f"{about}: {'; '.join(str(one) for one in wrong)}.",
        code="resume_mismatch",
        where=run,
        remedy=f"Leave it as it was, start a new run, or allow it by name, beside what you typed: {command}",
    )


def _completed_inside(known: Any, settings: Any, place: str) -> tuple[Any, list[Difference]]:
    if isinstance(known, Mapping) and isinstance(settings, Settings):
        return completed(known, settings, place)
    if isinstance(known, list | tuple) and isinstance(settings, tuple) and len(known) == len(settings):
        pairs = [_completed_inside(*pair, f"{place}.{i}") for i, pair in enumerate(zip(known, settings, strict=True))]
        return [value for value, _ in pairs], [one for _, found in pairs for one in found]
    return known, []


def _are_groups(was: Any, now: Any) -> bool:
    """Whether both are as many groups of settings, each of the same name where they have names."""
    if not all(isinstance(value, list | tuple) for value in (was, now)) or len(was) != len(now):
        return False
    pairs = list(zip(was, now, strict=True))
    return all(isinstance(a, Mapping) and isinstance(b, Mapping) and a.get("name") == b.get("name") for a, b in pairs)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

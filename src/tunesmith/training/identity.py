"""What decides a run's numbers, and how it differs when the run is gone on with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import UserError

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


def differences(was: Any, now: Any, place: str = "") -> list[Difference]:
    """All places where two plain values differ, in order of their names."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        keys = sorted({*was, *now})
        inner = (differences(was.get(key), now.get(key), f"{place}.{key}" if place else str(key)) for key in keys)
        return [one for found in inner for one in found]
    was, now = (list(value) if isinstance(value, tuple) else value for value in (was, now))
    return [] if was == now else [Difference(place, was, now)]


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


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

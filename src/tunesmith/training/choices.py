"""What a run chose by measuring, and why: made once, kept in the run folder, taken again on resume.

Another choice on resuming (blocks compiled or not, another precision) would change the last digits of every number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from tunesmith.core.run import RunFolder

FILE = "choices.json"


@dataclass(frozen=True)
class Choice:
    """One choice, with its reason in words for the user."""

    value: bool | int | float | str
    why: str


def decided(run: RunFolder, name: str, choose: Callable[[], Choice]) -> Choice:
    """The choice that this run has made, or the one that `choose` makes now."""
    kept = run.read_json(FILE) or {}
    if name not in kept:
        kept[name] = asdict(choose())
        run.write(FILE, kept)
    return Choice(**kept[name])


def keep(run: RunFolder, name: str, choice: Choice) -> Choice:
    """The same choice, kept in place of another: the recipe says so."""
    run.write(FILE, {**(run.read_json(FILE) or {}), name: asdict(choice)})
    return choice


def choices(run: RunFolder) -> dict[str, Choice]:
    """All choices of a run so far, by name."""
    return {name: Choice(**one) for name, one in (run.read_json(FILE) or {}).items()}

"""What a recipe will take, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.core.quantities import duration, gib, millions
from tunesmith.nouns.scores import frame
from tunesmith.reporters.notebook import html_table, html_text

if TYPE_CHECKING:
    import pandas as pd

    from tunesmith.steps.plan import Plan as Found


@dataclass(frozen=True, repr=False)
class Plan:
    """Memory and time of a training, and what else would fit."""

    fits: bool
    sentence: str
    """`It fits: peak 5.9 of 24.0 GiB (± 15 %), 38 min (25 to 51)`."""
    peak_bytes: int
    seconds: float
    """Of training, validations and scoring."""
    alternatives: tuple[Mapping[str, Any], ...]
    """Each with `title`, `overrides`, `fits`, `peak_bytes`, `seconds`, `trainable`."""
    values: Mapping[str, Any]
    """Everything, as `tunesmith plan --json` gives it."""

    @staticmethod
    def of_step(found: Found) -> Plan:
        values = found.to_dict()
        others = tuple(values["alternatives"])
        return Plan(found.fits, found.sentence, found.peak_bytes, found.seconds, others, values)

    def to_pandas(self) -> pd.DataFrame:
        """One line for the plan and for every alternative."""
        own = {"title": "this", **{key: self.values[key] for key in ("fits", "peak_bytes", "seconds", "trainable")}}
        return frame([own, *({key: one[key] for key in own} for one in self.alternatives)])

    def __repr__(self) -> str:
        return f"Plan({self.sentence!r})"

    def _repr_html_(self) -> str:
        rows = [
            (one["title"], gib(one["peak_bytes"]), duration(one["seconds"]), millions(one["trainable"]))
            for one in self.alternatives
        ]
        head = "also fits" if self.fits else "would fit"
        return html_text(self.sentence) + (html_table((head, "peak", "time", "trainable"), rows) if rows else "")

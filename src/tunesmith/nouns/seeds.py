"""One recipe trained with several seeds: its scores with their spread, and the runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.home import Home
from tunesmith.core.quantities import interval, number
from tunesmith.nouns.run import Run
from tunesmith.nouns.scores import frame
from tunesmith.reporters.notebook import html_table, html_text

if TYPE_CHECKING:
    import pandas as pd

    from tunesmith.steps.seeds import SeedsReport


@dataclass(frozen=True, repr=False)
class Seeds:
    """Several seeds of one recipe, on the same held-out rows."""

    path: Path
    runs: tuple[Run, ...]
    scores: Mapping[str, Mapping[str, Any]]
    """By metric: `mean`, `sd`, `low`, `high`, `values` (one per seed), `n`."""

    @staticmethod
    def of_report(report: SeedsReport, home: Home) -> Seeds:
        return Seeds(report.path, tuple(Run(path, home) for path in report.runs), report.to_dict()["scores"])

    def to_pandas(self) -> pd.DataFrame:
        """One line per metric."""
        return frame([{"metric": name, **score} for name, score in self.scores.items()])

    def __repr__(self) -> str:
        name, score = next(iter(self.scores.items()))
        return (
            f"Seeds({str(self.path)!r}, {len(self.runs)} seeds, {name}={number(score['mean'])}±{number(score['sd'])})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (name, interval(score["mean"], score["low"], score["high"]), number(score["sd"]))
            for name, score in self.scores.items()
        ]
        return html_text(repr(self)) + html_table(("", "mean", "sd"), rows)

"""A search for settings, opened from its folder; and the learning rate that a range test found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.home import Home
from tunesmith.core.quantities import number
from tunesmith.nouns.run import Run
from tunesmith.nouns.scores import frame
from tunesmith.reporters.notebook import html_table, html_text

if TYPE_CHECKING:
    import pandas as pd

    from tunesmith.recipe import Recipe

NUM_SHOWN = 5


@dataclass(frozen=True, repr=False)
class Search:
    """What was tried, and what was best."""

    path: Path
    report: Mapping[str, Any]
    """Everything, as report.json has it."""
    home: Home

    @property
    def best(self) -> dict[str, Any]:
        """The best values by their keys: `{"train.lr": 0.002, "method.rank": 8}`."""
        return dict(self.report["best"]["params"])

    @property
    def value(self) -> float:
        """The best value of the metric that decides, on validation rows."""
        return float(self.report["best"]["value"])

    @property
    def recipe(self) -> Recipe:
        """The best recipe: `ts.train(search.recipe)`; the file is `search.path / "best.yaml"`."""
        from tunesmith.recipe import read_recipe

        return read_recipe(self.path / "best.yaml")

    @property
    def run(self) -> Run | None:
        """The run of the best recipe, with scores on test rows; nothing where `search.train_best` was off."""
        tested = self.report["best_run"]
        return Run(self.path / tested["run"], self.home) if tested is not None else None

    @property
    def importance(self) -> dict[str, float]:
        """The share of the variance that each key explains, greatest first."""
        return dict(self.report["importance"])

    @property
    def trials(self) -> pd.DataFrame:
        """One line per trial, its values under their keys."""
        shown = ("trial", "state", "value", "validation_loss", "best_step", "steps", "seconds", "code")
        return frame([{**{k: one[k] for k in shown}, **one["params"]} for one in self.report["trials"]])

    def to_html(self) -> str:
        """The search's page, complete in itself."""
        return (self.path / "search.html").read_text(encoding="utf-8")

    def __repr__(self) -> str:
        chosen = ", ".join(f"{key}={value}" for key, value in self.best.items())
        return f"Search({str(self.path)!r}, {self.report['metric']}={number(self.value)} with {chosen})"

    def _repr_html_(self) -> str:
        sign = -1 if self.report["higher_is_better"] else 1
        complete = [trial for trial in self.report["trials"] if trial["state"] == "complete"]
        best = sorted(complete, key=lambda trial: sign * trial["value"])[:NUM_SHOWN]
        keys = [axis["key"] for axis in self.report["space"]]
        rows = [
            (str(one["trial"]), number(one["value"]), *(str(one["params"].get(key, "–")) for key in keys))
            for one in best
        ]
        return html_text(repr(self)) + html_table(("trial", self.report["metric_title"], *keys), rows)

"""Scores of one or several ways to answer the same held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.quantities import count, number
from tunesmith.nouns.scores import frame, score_interval
from tunesmith.reporters.notebook import html_table, html_text

if TYPE_CHECKING:
    import pandas as pd

    from tunesmith.core.records import Score
    from tunesmith.steps.compare import Comparison
    from tunesmith.steps.evaluate import Evaluation


@dataclass(frozen=True, repr=False)
class Report:
    """Scores of one or several ways to answer the same held-out rows."""

    verdict: str
    """The sentence: was it worth it?"""
    rows: tuple[Mapping[str, Any], ...]
    """One per way: `name`, `scores` (each `value`, `low`, `high`, `n`), times and memory."""
    metric: str
    """The score that decides."""
    path: Path | None = None
    """The folder of a comparison; an evaluation has none."""
    _answers: tuple[Mapping[str, Any], ...] = ()

    @staticmethod
    def of_comparison(comparison: Comparison) -> Report:
        report = comparison.report
        rows = tuple(report["rows"])
        return Report(comparison.verdict, rows, report["metric"], comparison.path, comparison.answers)

    @staticmethod
    def of_evaluation(name: str, evaluation: Evaluation) -> Report:
        scores = {score.metric: _score(score) for score in evaluation.scores}
        row = {"name": name, "scores": scores, "seconds_per_answer": evaluation.seconds_per_answer}
        answers = tuple(
            {"origin": o.origin, "prompt": o.prompt, "reference": o.reference, "answer": o.answer}
            for o in evaluation.outcomes
        )
        said = ", ".join(f"{metric.replace('_', ' ')} {score_interval(score)}" for metric, score in scores.items())
        text = f"{name} on {count(len(answers))} held-out rows: {said}."
        return Report(text, (row,), next(iter(scores), ""), None, answers)

    def answers(self, show: str = "") -> list[Mapping[str, Any]]:
        """Every answer; of a comparison also those that fine-tuning `fixed` or `broken`, or that are all `wrong`."""
        if not show:
            return list(self._answers)
        if self.path is None or show not in ("fixed", "broken", "wrong"):
            raise UserError(
                f'answers cannot be shown by "{show}";',
                code="bad_value",
                remedy="a comparison has fixed, broken, wrong.",
            )
        from tunesmith.steps.compare import Comparison

        return Comparison.open(self.path).show(show)

    def to_html(self) -> str:
        """The comparison's page, complete in itself."""
        if self.path is None:
            return self._repr_html_()
        return (self.path / "compare.html").read_text(encoding="utf-8")

    def to_pandas(self) -> pd.DataFrame:
        """One line per way, with columns `metric`, `metric_low`, `metric_high`."""
        return frame([self._flat(row) for row in self.rows])

    @staticmethod
    def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
        flat: dict[str, Any] = {"name": row["name"]}
        for name, score in row["scores"].items():
            flat |= {name: score["value"], f"{name}_low": score["low"], f"{name}_high": score["high"]}
        names = ("seconds_per_answer", "train_seconds", "peak_memory_bytes", "trainable_parameters", "forgets")
        return {**flat, **{name: row[name] for name in names if name in row}}

    def __repr__(self) -> str:
        return f"Report({self.verdict!r})"

    def _repr_html_(self) -> str:
        rows = [
            (str(row["name"]), score_interval(row["scores"].get(self.metric)), number(row.get("seconds_per_answer")))
            for row in self.rows
        ]
        titles = ("", self.metric.replace("_", " "), "seconds per answer")
        return html_text(self.verdict) + html_table(titles, rows)


def _score(score: Score) -> dict[str, Any]:
    return {"value": score.value, "low": score.low, "high": score.high, "n": score.num_rows}

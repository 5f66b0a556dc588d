"""The gate of quality: candidate and champion on the same held-out rows, as a whole and in slices.

Two conditions: by estimate not worse than the margin, and a loss of five margins excluded by the paired interval, so
that few or noisy rows do not pass by luck. (The whole interval within the margin would be stricter; 96 rows cannot
show that even of two equal models.) The same result on every row is no loss. A slice, which has fewer rows still,
fails where it is worse by more than its margin and beyond chance.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit
from tunesmith.core.intervals import Difference, difference
from tunesmith.core.plugins import build
from tunesmith.core.publish import verify
from tunesmith.core.quantities import count, number, signed
from tunesmith.core.records import Outcome
from tunesmith.core.store import Version
from tunesmith.metrics.base import Metric
from tunesmith.recipe import read_recipe
from tunesmith.steps.evaluate import evaluate_predictor, metric_of

MARGIN = 0.02
"""How much worse the score may be: a share of the metric's range, of the champion's value where that has no end."""
SERIOUS = 5
"""A loss of so many margins must lie outside the 95 % interval."""
SLICE_MARGIN = 0.05
MIN_SLICE_ROWS = 10
MAX_SLICES = 12
"""A column with more values than this does not slice the rows."""


@dataclass(frozen=True)
class Gate:
    """One condition: whether it holds, the numbers, and what was asked."""

    name: str
    passed: bool
    text: str
    threshold: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The gate as `--json`, the HTTP API and the alias' history give it."""
        return {
            "name": self.name,
            "passed": self.passed,
            "text": self.text,
            "threshold": self.threshold,
            "values": dict(self.values),
        }


class Comparison:
    """Candidate and champion on the same rows; the champion answers anew where its stored rows are others."""

    def __init__(self, candidate: Version, champion: Version | None, margin: float, emit: Emit) -> None:
        self.candidate, self.champion, self.margin, self.emit = candidate, champion, margin, emit
        self.found: Difference | None = None
        self._answers: tuple[list[Outcome], list[Outcome], str] | None = None

    def quality(self) -> Gate:
        metric = self._metric()
        ours, _ = outcomes_of(self.candidate)
        if self.champion is None:
            score = self.candidate.scores[0]
            text = f"{number(score['value'], 2)}, and no champion yet"
            return Gate(metric.heading(), True, text, "nothing to compare with", {"value": score["value"]})
        ours, theirs, note = self._on_same_rows(metric)
        seed = read_recipe(self.candidate.folder / "recipe.yaml").seed
        self.found = difference(metric, ours, theirs, seed)
        value, other = (float(metric.value(metric.statistics(rows).sum(axis=0))) for rows in (ours, theirs))
        floor = self.margin * _scale(metric, other)
        text, worst = _difference_text(self.found, value, other)
        sign = 1 if metric.higher_is_better else -1
        is_same = bool((metric.statistics(ours) == metric.statistics(_in_order(ours, theirs))).all())
        is_held = sign * self.found.value >= -floor and (is_same or worst >= -SERIOUS * floor)
        bound, side = ("at least", "above") if metric.higher_is_better else ("at most", "below")
        wanted = f"{bound} {signed(-sign * floor)}, interval {side} {signed(-sign * SERIOUS * floor)}"
        return Gate(
            metric.heading(),
            is_held,
            text + (", the same on every row" if is_same else "") + note,
            f"{wanted} ({count(len(ours))} rows)",
            {"value": value, "champion": other, "margin": floor, "difference": self.found.to_dict()},
        )

    def improvement(self) -> Gate:
        if self.champion is None:
            return Gate("improvement", True, "no champion yet", "nothing to compare with")
        if self.found is None:
            raise UserError("the scores could not be compared.", code="not_compared")
        is_better = (self.found.value > 0) == self.found.higher_is_better and self.found.value != 0
        beyond = "beyond chance" if self.found.is_better else "within chance"
        wanted = "more than 0" if self.found.higher_is_better else "less than 0"
        return Gate("improvement", is_better, f"{signed(self.found.value, 4)}, {beyond}", wanted)

    def slices(self) -> Gate:
        if self.champion is None:
            return Gate("slices", True, "no champion yet", "nothing to compare with")
        metric = self._metric()
        ours, theirs, _ = self._on_same_rows(metric)
        parts = _slices(ours)
        if not parts:
            text = f"no column has 2 to {MAX_SLICES} values with {MIN_SLICE_ROWS} rows each"
            return Gate("slices", True, text, "nothing to compare")
        worst: tuple[float, Gate] | None = None
        for title, rows in parts.items():
            gate, worse = self._slice(metric, title, rows, _in_order(rows, theirs))
            if worst is None or (gate.passed, worse) < (worst[1].passed, worst[0]):
                worst = worse, gate
        assert worst is not None
        if not worst[1].passed:
            return worst[1]
        text = f"{len(parts)} slices, none worse; the lowest is {worst[1].name}: {worst[1].text}"
        return Gate("slices", True, text, worst[1].threshold)

    def _slice(
        self, metric: Metric, title: str, ours: Sequence[Outcome], theirs: Sequence[Outcome]
    ) -> tuple[Gate, float]:
        found = difference(metric, ours, theirs, 1)
        value, other = (float(metric.value(metric.statistics(rows).sum(axis=0))) for rows in (ours, theirs))
        floor = SLICE_MARGIN * _scale(metric, other)
        sign = 1 if metric.higher_is_better else -1
        is_worse = found.is_worse and sign * found.value < -floor
        text, _ = _difference_text(found, value, other)
        threshold = f"at least {signed(-floor)}" if sign > 0 else f"at most {signed(floor)}"
        gate = Gate(title, not is_worse, text, f"{threshold} ({len(ours)} rows)", {"difference": found.to_dict()})
        return gate, sign * found.value

    def _metric(self) -> Metric:
        if not self.candidate.scores:
            raise UserError("it was registered without scores.", code="no_scores", where=self.candidate.reference)
        key = str(self.candidate.scores[0]["metric"])
        specs = self.candidate.lineage["recipe"]["evaluate"]
        known: list[Metric] = [build("metrics", spec) for spec in specs if not isinstance(specs, str)]
        return next((metric for metric in known if metric.key() == key), None) or metric_of(key)

    def _on_same_rows(self, metric: Metric) -> tuple[list[Outcome], list[Outcome], str]:
        if self._answers is None:
            self._answers = self._find_answers(metric)
        return self._answers

    def _find_answers(self, metric: Metric) -> tuple[list[Outcome], list[Outcome], str]:
        assert self.champion is not None
        ours, _ = outcomes_of(self.candidate)
        theirs, _ = outcomes_of(self.champion)
        if _rows(ours) == _rows(theirs) and _can_score(metric, theirs):
            return ours, theirs, ""
        return ours, self._answer_anew(metric, ours), ", which answered this version's rows anew"

    def _answer_anew(self, metric: Metric, ours: Sequence[Outcome]) -> list[Outcome]:
        from tunesmith.data.load import load_data
        from tunesmith.models.load import load_trained
        from tunesmith.models.predict import LocalPredictor

        assert self.champion is not None
        verify(self.champion.folder)
        recipe = read_recipe(self.candidate.folder / "recipe.yaml")
        data = load_data(recipe.data, seed=recipe.seed)
        by_place = {str(example.origin): example for example in (data.test or data.validation)}
        missing = [row.origin for row in ours if row.origin not in by_place]
        if missing:
            raise UserError(
                f"the champion was scored on other rows, and {missing[0]} is no longer there to ask it again.",
                code="rows_differ",
                remedy="Put the held-out rows back, or evaluate both on one file.",
            )
        evaluation = evaluate_predictor(
            LocalPredictor(load_trained(self.champion.model)),
            [by_place[row.origin] for row in ours],
            [metric],
            generate=recipe.generate,
            seed=recipe.seed,
            emit=self.emit,
            step="promote",
            num_timed=0,
        )
        changed = [a.origin for a, b in zip(ours, evaluation.outcomes, strict=True) if a.reference != b.reference]
        if changed:
            raise UserError(
                "the held-out rows changed since this version was scored.", code="rows_differ", where=changed[0]
            )
        return list(evaluation.outcomes)


def outcomes_of(version: Version) -> tuple[list[Outcome], dict[str, Any]]:
    """The stored held-out answers of a version, and the evaluation they belong to.

    Raises:
        UserError: Its report is absent or has no answers.
    """
    try:
        report = json.loads((version.folder / "report.json").read_text(encoding="utf-8"))
        after = report["after"]
        return [Outcome(**row) for row in after["outcomes"]], after
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            "its report.json holds no held-out answers.",
            code="no_outcomes",
            where=version.reference,
            remedy="Train it again with this version of Tunesmith, and register that run.",
        ) from None


def _difference_text(found: Difference, value: float, other: float) -> tuple[str, float]:
    """The numbers in words, and the worse end of the interval, positive where the candidate is better."""
    worst = found.low if found.higher_is_better else -found.high
    text = (
        f"{number(value, 2)} against {number(other, 2)}   "
        f"difference {signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"
    )
    return text, worst


def _scale(metric: Metric, value: float) -> float:
    lowest, highest = metric.bounds
    return highest - lowest if math.isfinite(highest - lowest) else abs(value)


def _in_order(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> list[Outcome]:
    by_place = {outcome.origin: outcome for outcome in theirs}
    return [by_place[outcome.origin] for outcome in ours]


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    return sorted((outcome.origin, outcome.prompt, outcome.reference) for outcome in outcomes)


def _can_score(metric: Metric, outcomes: Sequence[Outcome]) -> bool:
    try:
        metric.statistics(outcomes)
    except UserError:
        return False
    return True


def _slices(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Rows by the values of every column that slices them: `machine "AX-20"`."""
    columns: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        for name, value in outcome.fields.items():
            if isinstance(value, str | bool) and value != "":
                columns[name][str(value)].append(outcome)
    return {
        f'{name} "{value}"': rows
        for name, values in columns.items()
        if 2 <= len(values) <= MAX_SLICES
        for value, rows in values.items()
        if len(rows) >= MIN_SLICE_ROWS
    }

"""A row of a comparison as a whole: its learning rate chosen, its seeds put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.records import Outcome, Score
from tunesmith.core.seeds import seeds_score
from tunesmith.metrics.base import Metric
from tunesmith.recipe import CompareRow
from tunesmith.steps.compare_cells import Cell, Training, Try, Unit
from tunesmith.steps.compare_work import Work
from tunesmith.steps.evaluate import score_values
from tunesmith.steps.verdict import Candidate

Call = Callable[[Sequence[Unit]], Sequence[Cell | Try]]
"""Does units of work, here or in other processes, and gives their results in the same order."""


@dataclass(frozen=True)
class Result:
    """One row, measured with each of its seeds."""

    name: str
    row: CompareRow
    kind: str
    """`prompting`, `retrieval`, `baseline` or `fine-tuning`."""
    scores: tuple[Score, ...]
    """Means over the seeds."""
    cells: tuple[Cell, ...]
    """One per seed, the recipe's first."""
    lr: float | None = None
    """The learning rate that was chosen by trying."""
    tries: tuple[Try, ...] = ()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The answers that are shown: the first seed's."""
        return self.cells[0].outcomes

    @property
    def trainings(self) -> tuple[Training, ...]:
        return tuple(cell.training for cell in self.cells if cell.training)

    @property
    def seconds(self) -> float:
        """Seconds of all seeds; what was kept from an earlier comparison counts as it was then."""
        return sum(cell.seconds for cell in self.cells)

    @property
    def seconds_per_answer(self) -> float | None:
        return average([cell.seconds_per_answer for cell in self.cells])

    @property
    def train_seconds(self) -> float | None:
        return average([training.seconds for training in self.trainings])

    @property
    def peak_bytes(self) -> int:
        return max(self.answer_peak_bytes, self.train_peak_bytes or 0)

    @property
    def answer_peak_bytes(self) -> int:
        return max(cell.answer_peak_bytes for cell in self.cells)

    @property
    def train_peak_bytes(self) -> int | None:
        return max((training.peak_bytes for training in self.trainings), default=None)

    @property
    def is_reused(self) -> bool:
        """Whether nothing of it was done anew."""
        return all(cell.is_reused for cell in self.cells)

    @property
    def is_at_edge(self) -> bool:
        """Whether the chosen learning rate (or a baseline's strength) is the least or the greatest that was tried."""
        if self.cells[0].notes:
            return bool(self.cells[0].notes["is_at_edge"])
        rates = [found.lr for found in self.tries if found.validation_loss is not None]
        return len(self.tries) > 1 and self.lr in (min(rates), max(rates))

    @property
    def general(self) -> tuple[float, float] | None:
        """Perplexity of general text before and after, means over the seeds."""
        found = [cell.general for cell in self.cells if cell.general]
        return (mean(one[0] for one in found), mean(one[1] for one in found)) if found else None

    @property
    def forgets(self) -> float | None:
        """By how much perplexity on general text grew: 0.05 is five per cent."""
        return self.general[1] / self.general[0] - 1 if self.general else None

    def score(self, metric: Metric) -> Score:
        return next(score for score in self.scores if score.metric == metric.key())

    def values(self, work: Work) -> dict[str, Any]:
        """The row as the values of an event: the headline metric first."""
        scores = sorted(self.scores, key=lambda score: score.metric != work.headline.key())
        return {
            **score_values(scores),
            "seconds_per_answer": self.seconds_per_answer,
            "train_seconds": self.train_seconds,
            "peak_memory_bytes": self.peak_bytes,
            "forgets": self.forgets,
            **({"learning_rate": self.lr} if self.lr else {}),
        }

    def candidate(self, metric: Metric) -> Candidate:
        noun = "baseline" if self.kind == "baseline" else "prompt row"
        runs = tuple(cell.outcomes for cell in self.cells)
        return Candidate(self.name, self.kind == "fine-tuning", self.score(metric), self.outcomes, runs, noun)


def finish(work: Work, name: str, call: Call) -> Result:
    """The row's result: learning rates tried first, then every seed.

    Raises:
        UserError: A training refuses or breaks, or diverges at every learning rate.
    """
    row = work.row(name)
    seeds = work.seeds if row.method else work.seeds[:1]
    rates = row.lr if len(row.lr) > 1 else ()
    tries = tuple(one for one in call([Unit(name, seeds[0], rate, True) for rate in rates]) if isinstance(one, Try))
    lr = _best(tries, name) if tries else row.lr[0] if row.lr else None
    cells = tuple(one for one in call([Unit(name, seed, lr) for seed in seeds]) if isinstance(one, Cell))
    runs = [cell.outcomes for cell in cells]
    scores = tuple(seeds_score(metric, runs, work.recipe.seed) for metric in work.metrics)
    return Result(name, row, _kind(row), scores, cells, lr, tries)


def average(values: Sequence[float | None]) -> float | None:
    """The mean of what was measured, None where nothing was."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _kind(row: CompareRow) -> str:
    if row.method or row.run:
        return "fine-tuning"
    if row.baseline:
        return "baseline"
    return "retrieval" if row.prompting.needs_documents else "prompting"


def _best(tries: Sequence[Try], name: str) -> float:
    losses = {found.lr: found.validation_loss for found in tries if found.validation_loss is not None}
    if not losses:
        raise UserError(
            f"{name} diverged at every learning rate ({', '.join(f'{found.lr:g}' for found in tries)}).",
            code="not_finite",
            remedy="Give the row's `lr` lower values.",
        )
    return min(losses, key=lambda lr: losses[lr])

"""The micro-batches of a step, from its rows: a pure function of the step, its rows and how many tokens go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.objectives.base import Features
from tunesmith.training.ahead import Ahead, Key
from tunesmith.training.encode import Rows
from tunesmith.training.learner import Learner
from tunesmith.training.mixture import Mixture
from tunesmith.training.order import Order


@dataclass(frozen=True)
class StepBatches:
    """Whose batches they are, of which rows, and in which order the rows come."""

    learner: Learner
    mixture: Mixture
    rows: Rows
    order: Order
    seed: int
    rank: tuple[int, int] = (0, 1)
    """Which of how many processes this is; each has its share of a step's micro-batches."""

    def ahead(self, *, is_threaded: bool) -> Ahead[Any]:
        """A reader of steps: for each the weight of every source's rows, then (source, batch) one by one."""
        return Ahead(self.make, self.following, is_threaded=is_threaded)

    def make(self, key: Key) -> Iterator[Any]:
        """The items of a step."""
        if key.step + 1 < self.order.num_steps:
            self.rows.will_need(lambda: self.order.rows(key.step + 1))
        seen = {row: self._seen(row, key.step) for row in key.rows}
        groups = self.mixture.groups(key.rows, self.rows, key.micro_tokens, self.learner)
        weights: dict[str, float] = {}  # of the whole step, over all ranks
        for name, group in groups:
            weights[name] = weights.get(name, 0.0) + sum(seen[row].weight for row in group)
        yield weights
        place, count = self.rank
        for name, group in groups[place::count]:
            yield name, self.mixture.learner(name, self.learner).batch([seen[row] for row in group])

    def following(self, key: Key) -> Key | None:
        """The step after this one, if there is one."""
        step = key.step + 1
        return replace(key, step=step, rows=self.order.rows(step)) if step < self.order.num_steps else None

    def _seen(self, row: int, step: int) -> Features:
        """A row as a step sees it; a resumed step sees the same."""
        learner = self.mixture.learner(self.rows.source(row), self.learner)
        return learner.objective.renew(self.rows.features[row], learner.layout, (self.seed, step, row))

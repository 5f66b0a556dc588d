"""Several sources in one training: how often each is read, who learns it, and how their losses become one.

Sources that share a head share a loss: with S the sum of the loss over a source's rows in a step and W their weight,
the step's gradient is that of  Σ S / Σ W,  as if they were one file. Tasks with heads of their own have losses in
different units (nats per token, per row, squared errors), which such a sum would mix by their lengths. There it is that
of  Σ λ S / W,  each task's mean times its `loss_weight` λ; a task without rows in a step adds nothing to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from tunesmith.training.encode import Rows
from tunesmith.training.learner import Learner
from tunesmith.training.order import Stratum, micro_batches


@dataclass
class Tally:
    """Sums over the rows of one source."""

    loss: float = 0.0
    weight: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, weight: float, metrics: Mapping[str, float] = {}) -> None:
        """Count one micro-batch."""
        self.loss += loss
        self.weight += weight
        for name, value in metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value

    @property
    def mean(self) -> float:
        return self.loss / self.weight


@dataclass(frozen=True)
class Mixture:
    """What differs between the sources; empty where there is one."""

    copies: Mapping[str, float] = field(default_factory=dict)
    """How often each source's rows are read in an epoch."""
    learners: Mapping[str, Learner] = field(default_factory=dict)
    """Tasks with heads of their own on one backbone; empty where all sources share a head."""
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    """λ of each task."""

    @property
    def is_joint(self) -> bool:
        """Whether there are tasks with heads of their own."""
        return bool(self.learners)

    def strata(self, rows: Rows, learner: Learner) -> tuple[Stratum, ...]:
        """The sources as the order of rows takes them; `learner` is the one that all share."""
        return tuple(
            Stratum(rows.rows_of(name), self.learner(name, learner).layout.is_packed, self.copies.get(name, 1.0))
            for name in rows.names
        )

    def learner(self, name: str, shared: Learner) -> Learner:
        """Who learns a source's rows."""
        return self.learners.get(name, shared)

    def groups(
        self, numbers: Sequence[int], rows: Rows, micro_tokens: int, shared: Learner
    ) -> list[tuple[str, tuple[int, ...]]]:
        """Micro-batches, each of one source, as (source, row numbers)."""
        found = []
        for name in rows.names:
            mine = [row for row in numbers if rows.source(row) == name]
            is_packed = self.learner(name, shared).layout.is_packed
            if mine:
                found += [
                    (name, group) for group in micro_batches(mine, rows.lengths, micro_tokens, is_packed=is_packed)
                ]
        return found

    def scale(self, name: str, weight: float) -> float:
        """By what a task's sums are multiplied before gradients are added: λ / W; 1 where a head is shared."""
        return self.loss_weights.get(name, 1.0) / weight if self.is_joint else 1.0

    def total(self, tallies: Mapping[str, Tally]) -> tuple[float, float]:
        """The loss of all sources together as a sum and what it is to be divided by."""
        if self.is_joint:
            return sum(self.scale(name, one.weight) * one.loss for name, one in tallies.items() if one.weight), 1.0
        return sum(one.loss for one in tallies.values()), sum(one.weight for one in tallies.values())

    def trainable(self, learner: Learner) -> dict[str, tuple[nn.Parameter, float]]:
        """What trains, by name, with the factor of its learning rate.

        What tasks share stands once, under its name in the first; what is a later task's own begins with its name.
        """
        found: dict[str, tuple[nn.Parameter, float]] = {}
        seen: set[int] = set()
        for task, one in (self.learners or {"": learner}).items():
            for name, parameter in one.trainable().items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    key = f"{task}.{name}" if name in found else name
                    factor = one.method.learning_rate_factor(name) * one.head_factors.get(name, 1.0)
                    found[key] = (parameter, factor)
        return found


def by_source(name: str, tallies: Mapping[str, Tally]) -> dict[str, float]:
    """`name.SOURCE` with each source's mean; empty where there is one source."""
    if len(tallies) < 2:
        return {}
    return {f"{name}.{source}": one.mean for source, one in tallies.items() if one.weight}

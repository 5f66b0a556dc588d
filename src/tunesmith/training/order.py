"""Which rows each optimiser step sees: a pure function of lengths, seed and step number.

So a resumed run needs no iterator state. Every epoch is one permutation of all rows, cut into steps of nearly equal
tokens. Packed rows are read just so. Padded rows are first sorted by length within a window of some steps, whose steps
then come in random order: a step then goes through the model in one or two micro-batches with little padding, where
rows of all lengths would need many small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.pack import bucket, pack
from tunesmith.recipe import TrainSettings

WINDOW = 16
"""Steps whose padded rows are sorted together: enough for like lengths, few enough to stay random."""

Rows = NDArray[np.int64]


@dataclass
class Order:
    """The rows of every step. `lengths` are tokens per row."""

    lengths: Sequence[int]
    steps_per_epoch: int
    num_steps: int
    seed: int
    is_packed: bool
    _epoch: tuple[int, list[tuple[int, ...]]] = field(default=(-1, []), repr=False)
    """The steps of the epoch asked for last."""

    @staticmethod
    def plan(lengths: Sequence[int], settings: TrainSettings, seed: int, *, is_packed: bool) -> Order:
        """Steps of about `tokens_per_step` tokens for the wished number of epochs or steps."""
        per_epoch = max(1, min(len(lengths), round(sum(lengths) / settings.tokens_per_step)))
        num_steps = settings.steps or max(1, round(settings.epochs * per_epoch))
        return Order(lengths, per_epoch, num_steps, seed, is_packed)

    def rows(self, step: int) -> tuple[int, ...]:
        """The row numbers of a step (from 0), in the order they are read."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._steps(epoch))
        return self._epoch[1][index]

    def _steps(self, epoch: int) -> list[tuple[int, ...]]:
        random = np.random.default_rng((self.seed, epoch))
        lengths = np.asarray(self.lengths)
        steps = _cut(random.permutation(len(lengths)), lengths, self.steps_per_epoch)
        if not self.is_packed:
            windows = [steps[first : first + WINDOW] for first in range(0, len(steps), WINDOW)]
            steps = [step for window in windows for step in _regroup(window, lengths, random)]
        return [tuple(step.tolist()) for step in steps]


def micro_batches(
    rows: Sequence[int], lengths: Sequence[int], micro_tokens: int, *, is_packed: bool
) -> list[tuple[int, ...]]:
    """The rows of a step in groups that go through the model at once."""
    sizes = [lengths[row] for row in rows]
    groups = pack(sizes, micro_tokens) if is_packed else bucket(sizes, micro_tokens)
    return [tuple(rows[place] for place in group) for group in groups]


def _regroup(steps: Sequence[Rows], lengths: NDArray[np.int64], random: np.random.Generator) -> list[Rows]:
    """The same rows in as many steps, each of like lengths, in random order."""
    rows = np.concatenate(steps)
    by_length = rows[np.argsort(lengths[rows], kind="stable")]
    regrouped = _cut(by_length, lengths, len(steps))
    return [regrouped[place] for place in random.permutation(len(regrouped))]


def _cut(rows: Rows, lengths: NDArray[np.int64], count: int) -> list[Rows]:
    """Rows in `count` pieces of nearly equal tokens, none of them empty."""
    ends = np.cumsum(lengths[rows])
    marks = ends[-1] * np.arange(1, count) / count
    bounds = [0]
    for number, cut in enumerate(np.searchsorted(ends, marks).tolist(), 1):
        latest = len(rows) - (count - number)
        bounds.append(min(max(cut + 1, bounds[-1] + 1), latest))
    bounds.append(len(rows))
    return [rows[first:last] for first, last in pairwise(bounds)]

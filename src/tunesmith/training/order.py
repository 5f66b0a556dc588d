"""Which rows each optimiser step sees: a pure function of lengths, seed and step number.

So a resumed run needs no iterator state. Every epoch is one permutation of all rows, cut into steps of nearly equal
tokens; how a step is divided into micro-batches changes nothing but memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.data.pack import bucket, pack
from tunesmith.recipe import TrainSettings


@dataclass(frozen=True)
class Order:
    """The rows of every step. `lengths` are tokens per row."""

    lengths: tuple[int, ...]
    steps_per_epoch: int
    num_steps: int
    seed: int

    @staticmethod
    def plan(lengths: Sequence[int], settings: TrainSettings, seed: int) -> Order:
        """Steps of about `tokens_per_step` tokens for the wished number of epochs or steps."""
        per_epoch = max(1, min(len(lengths), round(sum(lengths) / settings.tokens_per_step)))
        num_steps = settings.steps or max(1, round(settings.epochs * per_epoch))
        return Order(tuple(lengths), per_epoch, num_steps, seed)

    def rows(self, step: int) -> tuple[int, ...]:
        """The row numbers of a step (from 0), in the order they are read."""
        epoch, index = divmod(step, self.steps_per_epoch)
        permutation = np.random.default_rng((self.seed, epoch)).permutation(len(self.lengths))
        bounds = self._bounds(permutation)
        return tuple(permutation[bounds[index] : bounds[index + 1]].tolist())

    def _bounds(self, permutation: np.ndarray) -> list[int]:
        ends = np.cumsum(np.asarray(self.lengths)[permutation])
        marks = ends[-1] * np.arange(1, self.steps_per_epoch) / self.steps_per_epoch
        cuts = np.searchsorted(ends, marks).tolist()
        bounds = [0]
        for number, cut in enumerate(cuts, 1):  # every step keeps at least one row
            latest = len(permutation) - (self.steps_per_epoch - number)
            bounds.append(min(max(cut + 1, bounds[-1] + 1), latest))
        return [*bounds, len(permutation)]


def micro_batches(
    rows: Sequence[int], lengths: Sequence[int], micro_tokens: int, *, is_packed: bool
) -> list[tuple[int, ...]]:
    """The rows of a step in groups that go through the model at once."""
    sizes = [lengths[row] for row in rows]
    groups = pack(sizes, micro_tokens) if is_packed else bucket(sizes, micro_tokens)
    return [tuple(rows[place] for place in group) for group in groups]

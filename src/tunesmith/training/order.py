"""Which rows each optimiser step sees: a pure function of lengths, seed and step number.

So a resumed run needs no iterator state. Every epoch is one permutation of all rows, cut into steps of nearly equal
tokens. Several sources are each permuted and cut by themselves, and a step has its piece of each, so that every step
sees every source in its share; a source that is read 2.5 times per epoch has two and a half permutations in it.

Packed rows are read just so. Padded rows are first sorted by length within a window of some steps, whose steps then
come in random order: a step then goes through the model in one or two micro-batches with little padding, where rows
of all lengths would need many small ones. The steps of a window have nearly equal weight (rows of a classifier, learnt
tokens of a text) and not equal tokens: a step's loss is divided by its weight, so a row among few long ones would
otherwise count more than one among many short ones.

All of it is work on arrays: an epoch of ten million rows is laid out in a few seconds, and takes about 30 bytes a row
while that is done and 15 afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.pack import bucket, pack
from tunesmith.recipe import TrainSettings

AT_ONCE = {"bf16": 2048, "fp32": 1024}
"""Tokens of a micro-batch that keep a processor busy (docs/log.md): by its precision, as many bytes of states."""
AT_ONCE_ON_CUDA = 8192
"""The same for a GPU."""
WINDOW = 16
"""Steps whose padded rows are sorted together: enough for like lengths, few enough to stay random."""

Rows = NDArray[np.int32]
Numbers = Sequence[int] | Sequence[float] | NDArray[Any]


@dataclass(frozen=True, eq=False)
class Stratum:
    """The rows of one source."""

    rows: Sequence[int] | NDArray[Any]
    is_packed: bool
    copies: float = 1.0
    """How often each row is read in an epoch, at least once; the half of 1.5 is drawn anew in every epoch."""

    @property
    def num_reads(self) -> int:
        """Rows read in an epoch."""
        return round(self.copies * len(self.rows))


@dataclass
class Order:
    """The rows of every step. `lengths` are tokens per row, `weights` what each adds to its step's weight."""

    lengths: NDArray[Any]
    steps_per_epoch: int
    num_steps: int
    seed: int
    strata: tuple[Stratum, ...]
    weights: NDArray[Any]
    _epochs: dict[int, list[Rows]] = field(default_factory=dict, repr=False)
    """The steps of the two epochs asked for last: at an epoch's end the next one is read ahead."""
    _lock: Lock = field(default_factory=Lock, repr=False)

    @staticmethod
    def plan(
        lengths: Numbers,
        settings: TrainSettings,
        seed: int,
        *,
        is_packed: bool = False,
        strata: Sequence[Stratum] = (),
        weights: Numbers | None = None,
    ) -> Order:
        """Steps of about `tokens_per_step` tokens for the wished number of epochs or steps.

        Without `strata` all rows are one source; without `weights` a row weighs its tokens.
        """
        sizes = np.asarray(lengths)
        strata = tuple(strata) or (Stratum(np.arange(len(sizes), dtype=np.int32), is_packed),)
        tokens = sum(int(sizes[np.asarray(one.rows, dtype=np.int32)].sum()) * one.copies for one in strata)
        most = max(one.num_reads for one in strata)  # so that no step is empty
        per_epoch = max(1, min(most, round(tokens / settings.tokens_per_step)))
        num_steps = settings.steps or max(1, round(settings.epochs * per_epoch))
        return Order(sizes, per_epoch, num_steps, seed, strata, sizes if weights is None else np.asarray(weights))

    def rows(self, step: int) -> tuple[int, ...]:
        """The row numbers of a step (from 0), in the order they are read."""
        epoch, index = divmod(step, self.steps_per_epoch)
        with self._lock:
            if epoch not in self._epochs:
                if len(self._epochs) > 1:
                    del self._epochs[min(self._epochs)]
                self._epochs[epoch] = self._steps(epoch)
            return tuple(self._epochs[epoch][index].tolist())

    def _steps(self, epoch: int) -> list[Rows]:
        several = len(self.strata) > 1
        parts = [
            self._part(one, np.random.default_rng((self.seed, epoch, *((place,) if several else ()))))
            for place, one in enumerate(self.strata)
        ]
        if not several:
            return parts[0]
        return [np.concatenate([part[step] for part in parts]) for step in range(self.steps_per_epoch)]

    def _part(self, one: Stratum, random: np.random.Generator) -> list[Rows]:
        """The pieces of one source in an epoch's steps; empty ones where it has fewer reads than there are steps."""
        count, own, lengths = self.steps_per_epoch, np.asarray(one.rows, dtype=np.int32), self.lengths
        rounds = -(-one.num_reads // max(1, len(own)))
        permuted = [own[random.permutation(len(own))] for _ in range(rounds)] or [own]
        rows = (permuted[0] if len(permuted) == 1 else np.concatenate(permuted))[: one.num_reads]
        if len(rows) < count:
            places = ((np.arange(len(rows)) + random.random()) * count / max(1, len(rows))).astype(np.int64)
            return [rows[places == step] for step in range(count)]
        steps = _cut(rows, lengths, count)
        if one.is_packed:
            return steps
        windows = [steps[first : first + WINDOW] for first in range(0, len(steps), WINDOW)]
        return [step for window in windows for step in _regroup(window, lengths, self.weights, random)]


def tokens_at_once(settings: TrainSettings, device: str, precision: str) -> int:
    """How many tokens a micro-batch may have on a device of this type, while memory lasts.

    A step may be smaller, and goes at once then: cut at its mean size, every second step would go in two halves.
    """
    if settings.micro_tokens != "auto":
        return settings.micro_tokens
    return AT_ONCE_ON_CUDA if device == "cuda" else AT_ONCE[precision]


def micro_batches(
    rows: Sequence[int], lengths: Sequence[int] | NDArray[Any], micro_tokens: int, *, is_packed: bool
) -> list[tuple[int, ...]]:
    """The rows of a step in groups that go through the model at once."""
    sizes = [int(lengths[row]) for row in rows]
    groups = pack(sizes, micro_tokens) if is_packed else bucket(sizes, micro_tokens)
    return [tuple(rows[place] for place in group) for group in groups]


def _regroup(
    steps: Sequence[Rows], lengths: NDArray[Any], weights: NDArray[Any], random: np.random.Generator
) -> list[Rows]:
    """The same rows in as many steps, each of like lengths and nearly equal weight, in random order."""
    rows = np.concatenate(steps)
    by_length = rows[np.argsort(lengths[rows], kind="stable")]
    regrouped = _cut(by_length, weights, len(steps))
    return [regrouped[place] for place in random.permutation(len(regrouped))]


def _cut(rows: Rows, sizes: NDArray[Any], count: int) -> list[Rows]:
    """Rows in `count` pieces of nearly equal size together, none of them empty."""
    ends = np.cumsum(sizes[rows])
    marks = ends[-1] * np.arange(1, count) / count
    bounds = [0]
    for number, cut in enumerate(np.searchsorted(ends, marks).tolist(), 1):
        latest = len(rows) - (count - number)
        bounds.append(min(max(cut + 1, bounds[-1] + 1), latest))
    bounds.append(len(rows))
    return [rows[first:last] for first, last in pairwise(bounds)]

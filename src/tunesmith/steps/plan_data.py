"""The rows of a plan: a sample is tokenised, and the steps of the run are laid out on lengths drawn from it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import UserError
from tunesmith.core.records import Example
from tunesmith.objectives.base import Features, Objective
from tunesmith.recipe import TrainSettings
from tunesmith.training.order import Order, micro_batches

SAMPLE_ROWS, SAMPLE_SECONDS = 1500, 3.0
"""Rows that are tokenised for a plan, and for how long; fewer rows are all of them."""
MOST_DRAWN = 200_000
"""Rows whose lengths are laid out into steps; of more, the steps of so many are multiplied."""
SAMPLE_STEPS = 12


@dataclass(frozen=True)
class SampleRows:
    """Rows of one side of the data: all of them, or a sample that stands for `number`."""

    features: tuple[Features, ...]
    number: int
    """Encoded rows of the whole side."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole side."""
        return round(self.number * sum(row.num_tokens for row in self.features) / max(1, len(self.features)))

    @property
    def longest(self) -> int:
        return max(row.num_tokens for row in self.features)

    def scaled(self, factor: float, longest: int) -> SampleRows:
        """As another tokenizer would cut them, whose tokens are `factor` as many; at most `longest` each."""
        return replace(self, features=tuple(_stretched(row, factor, longest) for row in self.features))


def sample_rows(
    examples: Sequence[Example], objective: Objective, tokenizer: Any, *, max_length: int, labels: Sequence[str]
) -> SampleRows:
    """A sample of these rows, encoded, drawn without looking at them.

    Raises:
        UserError: None of them has a token to learn.
    """
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    found: dict[int, list[Features]] = {}
    begun = time.perf_counter()
    for place in order[:SAMPLE_ROWS]:
        pieces = objective.encode(examples[place], tokenizer, max_length=max_length, labels=labels)
        found[place] = [piece for piece in pieces if piece.weight]
        if any(found.values()) and time.perf_counter() - begun > SAMPLE_SECONDS:
            break
    features = [piece for place in sorted(found) for piece in found[place]]  # all rows: the run's own steps
    if not features:
        raise UserError(
            f"none of the rows has a token to learn within {max_length} tokens.",
            code="nothing_trained",
            where=str(examples[0].origin),
            remedy="Raise data.max_length, or look at the rows with `tunesmith data show`.",
        )
    return SampleRows(tuple(features), round(len(examples) * len(features) / len(found)))


@dataclass(frozen=True)
class Layout:
    """How a run's rows go through the model."""

    num_steps: int
    steps_per_epoch: int
    micro_batches: float
    """Of a step, on average."""
    tokens: float
    """Of a step, without padding."""
    places: float
    """Of a step, padding included: what the model computes."""
    typical: tuple[Features, ...]
    """A micro-batch of about the average size."""
    small: tuple[Features, ...]
    """A part of it."""
    largest: tuple[Features, ...]
    """The micro-batch with most places."""
    steepest: tuple[Features, ...]
    """The one with most pairs of queries and keys; one of the two takes most memory."""


def lay_out(rows: SampleRows, settings: TrainSettings, seed: int, *, is_packed: bool, micro_tokens: int) -> Layout:
    """The steps of a run, tried on some of them."""
    drawn = min(rows.number, MOST_DRAWN)
    places: NDArray[np.int64] = np.arange(drawn, dtype=np.int64) % len(rows.features)
    own = np.array([row.num_tokens for row in rows.features], dtype=np.int64)
    weights = np.array([row.weight for row in rows.features])[places]
    order = Order.plan(own[places], settings, seed, is_packed=is_packed, weights=weights)
    multiple = rows.number / drawn
    per_epoch = max(1, round(order.steps_per_epoch * multiple))
    num_steps = settings.steps or max(1, round(settings.epochs * per_epoch))
    last = min(num_steps, order.steps_per_epoch) - 1
    chosen = np.unique(np.linspace(0, last, SAMPLE_STEPS).astype(int)).tolist()
    lengths = own[places].tolist()
    groups = [
        [rows.features[places[row]] for row in group]
        for step in chosen
        for group in micro_batches(order.rows(step), lengths, micro_tokens, is_packed=is_packed)
    ]
    alone = [max(rows.features, key=lambda row: row.num_tokens)]
    candidates: list[list[Features]] = [*groups, alone]
    sizes = [_size(group, is_packed) for group in groups]
    mean = sum(sizes) / len(sizes)
    typical = min(groups, key=lambda group: abs(_size(group, is_packed) - mean))
    steepest = max(candidates, key=lambda group: _pairs(group, is_packed))
    largest = max(candidates, key=lambda group: (_size(group, is_packed), _pairs(group, is_packed)))
    return Layout(
        num_steps=num_steps,
        steps_per_epoch=per_epoch,
        micro_batches=len(groups) / len(chosen),
        tokens=sum(row.num_tokens for group in groups for row in group) / len(chosen),
        places=sum(sizes) / len(chosen),
        typical=tuple(typical),
        small=_part(typical),
        largest=tuple(largest),
        steepest=tuple(steepest),
    )


def size(rows: Sequence[Features], *, is_packed: bool) -> int:
    """Places that a micro-batch takes, padding included."""
    return _size(rows, is_packed)


def _size(rows: Sequence[Features], is_packed: bool) -> int:
    lengths = [row.num_tokens for row in rows]
    return sum(lengths) if is_packed else len(lengths) * max(lengths)


def _pairs(rows: Sequence[Features], is_packed: bool) -> int:
    lengths = [row.num_tokens for row in rows]
    return sum(length**2 for length in lengths) if is_packed else len(lengths) * max(lengths) ** 2


def _part(rows: Sequence[Features]) -> tuple[Features, ...]:
    """A quarter of a micro-batch's rows, or the first half of its only row."""
    if len(rows) > 1:
        return tuple(rows[: max(1, len(rows) // 4)])
    return (_stretched(rows[0], 0.5, rows[0].num_tokens),)


def _stretched(row: Features, factor: float, longest: int) -> Features:
    """The row with so many times its tokens: repeated, or cut."""

    def ids(values: tuple[int, ...]) -> tuple[int, ...]:
        wanted = min(longest, max(1, round(factor * len(values)))) if values else 0
        return tuple(values[place * len(values) // wanted] for place in range(wanted))

    per_token = len(row.labels) in (len(row.input_ids), len(row.target_ids)) and len(row.labels) > 1
    labels = ids(row.labels) if per_token else row.labels
    return replace(
        row,
        input_ids=ids(row.input_ids),
        labels=labels,
        token_type_ids=ids(row.token_type_ids),
        target_ids=ids(row.target_ids),
    )

"""How long a training takes, from what its micro-batches compute and move and from a machine's rates.

A micro-batch takes its matrix products at the machine's rate, everything else at the memory's rate, and a little for
every operation. What that leaves out (caches, odd shapes) is one factor, which a probe measures on this machine: a few
blocks with random weights, really run. It also times the optimiser's step, and how much longer the first pass takes.
Elsewhere these are assumptions that the plan states.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from torch import nn

from tunesmith.models.allocator import keep_freed_memory
from tunesmith.models.anatomy import hidden_matrices
from tunesmith.objectives.base import Features
from tunesmith.recipe import TrainSettings
from tunesmith.training.learner import Learner
from tunesmith.training.optim import make_optimizer, scale_and_clip, set_learning_rate
from tunesmith.training.trace import Work

OPTIMIZER_PASSES = 13
"""Reads and writes of each trained weight in a step: AdamW's 7, dividing, norm and clipping of gradients."""
PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class Pace:
    """What a machine does in a second, as plans reckon."""

    flops: float
    """Matrix products in the run's precision, operations a second."""
    bytes_per_second: float
    operation_seconds: float
    factor: float = 1.0
    """By how much real work takes longer than these numbers say."""
    step_seconds_per_byte: float = 0.0
    """Of an optimiser step with its norms, by bytes of trained weights, as probed; 0 where it was not."""
    first_seconds_per_byte: float = 0.0
    """Of memory that is touched for the first time, and of products that are made ready, by bytes held."""

    def seconds(self, work: Work) -> float:
        """Of one micro-batch, forward and backward."""
        moving = work.moved_bytes / self.bytes_per_second + work.operations * self.operation_seconds
        return self.factor * (work.matrix_flops / self.flops + moving)

    def forward_seconds(self, work: Work) -> float:
        """Of the forward pass alone: its share of the products is taken for its share of everything."""
        return self.seconds(work) * work.forward_flops / max(work.matrix_flops, 1.0)

    def optimizer_seconds(self, trained_bytes: int) -> float:
        """Of one optimiser step over fp32 weights of so many bytes."""
        each = self.step_seconds_per_byte or OPTIMIZER_PASSES / self.bytes_per_second
        return each * trained_bytes


def probed(pace: Pace, learner: Learner, rows: Sequence[Features], work: Work, settings: TrainSettings) -> Pace:
    """The pace with its factor from really running `rows` on a small real learner, whose cost is `work`.

    The median of some passes after the first: the best would be the pace of a machine that is never disturbed. Freed
    memory is kept as in training.
    """
    keep_freed_memory()
    learner.method.set_training(learner.model)
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < 2 or time.perf_counter() - begun < PROBE_SECONDS:
        start = time.perf_counter()
        loss, _ = learner.loss(learner.batch(rows))
        loss.backward()  # type: ignore[no-untyped-call]
        learner.model.zero_grad(set_to_none=True)
        taken.append(time.perf_counter() - start)
        if time.perf_counter() - begun > 4 * PROBE_SECONDS:
            break
    usual, held = median(taken[1:] or taken), work.kept_bytes + work.transient_bytes
    trained = sum(one.nbytes for one in learner.trainable().values())
    return replace(
        pace,
        factor=usual / replace(pace, factor=1.0).seconds(work),
        step_seconds_per_byte=_step_seconds(learner, rows, settings) / trained,
        first_seconds_per_byte=max(0.0, taken[0] - usual) / max(held, 1.0),
    )


def _step_seconds(learner: Learner, rows: Sequence[Features], settings: TrainSettings) -> float:
    """Of an optimiser step as the loop makes it, after the first, in which the optimiser's memory is made."""
    tensors, hidden = learner.trainable(), hidden_matrices(learner.model)
    optimizer = make_optimizer(tensors, settings, is_hidden=lambda one: id(one) in hidden)
    set_learning_rate(optimizer, 0.0)
    learner.loss(learner.batch(rows))[0].backward()  # type: ignore[no-untyped-call]
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        scale_and_clip(tensors.values(), 2.0, settings.max_grad_norm)
        optimizer.step()
        nn.utils.get_total_norm(tensors.values())
        taken.append(time.perf_counter() - start)
    learner.model.zero_grad(set_to_none=True)
    return median(taken[1:])

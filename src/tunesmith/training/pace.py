"""How long a training takes, from what its micro-batches compute and move and from a machine's rates.

A micro-batch takes its matrix products at the machine's rate, everything else at the memory's rate, and a little for
every operation. What that leaves out (caches, odd shapes) is one factor, which a probe measures on this machine: a few
blocks with random weights, really run. Elsewhere it is an assumption that the plan states.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from tunesmith.objectives.base import Features
from tunesmith.training.learner import Learner
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

    def seconds(self, work: Work) -> float:
        """Of one micro-batch, forward and backward."""
        moving = work.moved_bytes / self.bytes_per_second + work.operations * self.operation_seconds
        return self.factor * (work.matrix_flops / self.flops + moving)

    def forward_seconds(self, work: Work) -> float:
        """Of the forward pass alone: its share of the products is taken for its share of everything."""
        return self.seconds(work) * work.forward_flops / max(work.matrix_flops, 1.0)

    def optimizer_seconds(self, trained_bytes: int) -> float:
        """Of one optimiser step over fp32 weights of so many bytes."""
        return OPTIMIZER_PASSES * trained_bytes / self.bytes_per_second


def probed(pace: Pace, learner: Learner, rows: Sequence[Features], work: Work) -> Pace:
    """The pace with its factor from really running `rows` on a small real learner, whose cost is `work`.

    The median of some passes after the first: the best would be the pace of a machine that is never disturbed.
    """
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
    plain = replace(pace, factor=1.0).seconds(work)
    return replace(pace, factor=median(taken[1:] or taken) / plain)

"""The learning-rate range test: one step at each of many rising rates, to see where the loss falls fastest.

Smith (arXiv:1506.01186, sec. 3.3), with rates that rise exponentially. Nothing that was trained is kept.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import Interrupted, UserError
from tunesmith.core.events import Emit, Finished, Progress, Saved, Started
from tunesmith.core.publish import write_json
from tunesmith.core.run import RunFolder, environment, now
from tunesmith.recipe import Recipe

STEP = "search"
SMOOTHING = 0.9
"""Weight of the past in the smoothed loss: about the last 10 steps."""
DIVERGED = 4.0
"""The test ends where the smoothed loss is so many times its lowest,"""
WORSE = 1.5
"""or so many times what it was at the beginning (a language model's loss ends at the logarithm of its vocabulary)."""
WINDOW = 0.5
"""Decades of learning rates over which a slope is measured: shorter ones follow the noise of single steps."""
REACH = 2
"""Rates on either side that a slope is measured over at least; few steps lie further apart than `WINDOW`."""
LEAST_STEPS = 20
WARMING = 10
"""The first steps say nothing: the smoothed loss has no past there, and AdamW has no moments."""


@dataclass(frozen=True)
class Point:
    """One step: its rate, the loss of its rows before it, and the smoothed loss."""

    rate: float
    loss: float
    smoothed: float


@dataclass(frozen=True)
class RangeTest:
    """What a range test found."""

    path: Path
    rate: float
    """Where the smoothed loss fell fastest, with two digits."""
    lowest: float
    """Where it was lowest."""
    points: tuple[Point, ...]
    has_diverged: bool
    """Whether the loss broke before the last rate."""

    @property
    def override(self) -> str:
        """What to type: `train.lr=0.002`."""
        return f"train.lr={self.rate:g}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "lr": self.rate,
            "override": self.override,
            "lowest_lr": self.lowest,
            "has_diverged": self.has_diverged,
            "steps": len(self.points),
            "points": [asdict(point) for point in self.points],
        }


def lr_range(recipe: Recipe, *, low: float, high: float, num_steps: int, emit: Emit, root: Path) -> RangeTest:
    """Train `num_steps` steps at rates from `low` to `high`, and suggest one.

    Raises:
        UserError: The range is empty, the recipe or its data cannot be used, or the loss never fell.
        Interrupted: The user stopped it; nothing is left.
    """
    from tunesmith.reports.lr_plot import lr_plot

    _check(low, high, num_steps)
    started = time.perf_counter()
    name = recipe.name or "recipe"
    lines = (
        ("rates", f"{low:g} to {high:g} in {num_steps} steps, or until the loss breaks"),
        ("model", recipe.model.name),
    )
    emit(Started(STEP, "", {"low": low, "high": high, "steps": num_steps}, lines, on_interrupt="stops; keeps nothing"))
    try:
        points = _sweep(recipe, rates(low, high, num_steps), emit)
    except KeyboardInterrupt:
        raise Interrupted("stopped; nothing was kept") from None
    rate, lowest = suggested(points)
    folder = RunFolder.create(root, f"{name}-lr-range")
    folder.checkpoints.rmdir()
    found = RangeTest(folder.path, rate, lowest, tuple(points), len(points) < num_steps)
    lr_plot(found.to_dict(), folder.path / "lr_range.png")
    folder.write("recipe.yaml", recipe.to_yaml())
    report = {"format": 1, "at": now(), **json.loads(json.dumps(found.to_dict())), "environment": environment()}
    write_json(folder.path / "report.json", {**report, "path": folder.name})
    emit(Saved(STEP, str(folder.path / "lr_range.png"), "plot"))
    emit(Finished(STEP, f"{found.override} · tried {len(points)} rates", time.perf_counter() - started, {"lr": rate}))
    return found


def rates(low: float, high: float, num_steps: int) -> list[float]:
    """`num_steps` learning rates from `low` to `high`, each the same factor above the one before."""
    return [low * (high / low) ** (i / (num_steps - 1)) for i in range(num_steps)]


def smoothed(losses: Sequence[float], smoothing: float = SMOOTHING) -> list[float]:
    """Exponential means m_i = b m_(i-1) + (1 - b) l_i, over 1 - b^i: what they lack at the beginning (i from 1)."""
    mean, found = 0.0, []
    for i, loss in enumerate(losses, 1):
        mean = smoothing * mean + (1 - smoothing) * loss
        found.append(mean / (1 - smoothing**i))
    return found


def is_broken(means: Sequence[float]) -> bool:
    """Whether the last smoothed loss is far above the lowest, or above the first that can be trusted."""
    trusted = means[WARMING:]
    return bool(trusted) and trusted[-1] > min(DIVERGED * min(trusted), WORSE * trusted[0])


def suggested(points: Sequence[Point]) -> tuple[float, float]:
    """The rate at which the smoothed loss falls fastest per decade, and the one at which it is lowest.

    Looked for between the first steps and the lowest loss; a slope is that of the least-squares line over half a
    decade around the rate, or over five rates where steps are few.

    Raises:
        UserError: The loss fell nowhere.
    """
    after = points[WARMING:]
    place = min(range(len(after)), key=lambda i: after[i].smoothed, default=0)
    spacing = math.log10(points[1].rate / points[0].rate) if len(points) > 1 else 0.0
    half = max(WINDOW / 2, REACH * spacing) * (1 + 1e-9)
    steepest, rate = 0.0, 0.0
    for point in after[: place + 1]:
        slope = _slope([one for one in points if abs(math.log10(one.rate / point.rate)) <= half])
        if slope < steepest:
            steepest, rate = slope, point.rate
    if not rate:
        raise _no_rate(points)
    return float(f"{rate:.2g}"), after[place].rate


def _no_rate(points: Sequence[Point]) -> UserError:
    """What was seen instead of a fall, and what can be done about it."""
    if len(points) <= WARMING:
        seen = f"the loss broke after {len(points)} steps, of which the first {WARMING} say nothing."
    else:
        begin, end = points[WARMING], points[-1]
        seen = (
            f"the loss fell at no learning rate: smoothed, it went from {begin.smoothed:.3g} at {begin.rate:.1e} to "
            f"{end.smoothed:.3g} at {end.rate:.1e}."
        )
    return UserError(
        seen,
        code="no_rate",
        remedy=f"Give it more rates with --steps (the first {WARMING} only warm up; 100 is usual), lower ones with "
        "--low, or calmer steps with a larger train.tokens_per_step.",
    )


def _slope(points: Sequence[Point]) -> float:
    """Of the least-squares line of the smoothed loss over log10 of the rate; 0 where there is none."""
    if len(points) < 3:
        return 0.0
    xs = [math.log10(point.rate) for point in points]
    ys = [point.smoothed for point in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


def _check(low: float, high: float, num_steps: int) -> None:
    if not 0 < low < high:
        raise UserError(
            f"the range is empty: low {low:g}, high {high:g}.", code="empty_range", remedy="Set 0 < --low < --high."
        )
    if num_steps < LEAST_STEPS:
        raise UserError(
            f"{num_steps} steps are too few.", code="bad_value", remedy=f"Set --steps {LEAST_STEPS} or more."
        )


def _sweep(recipe: Recipe, wished: Sequence[float], emit: Emit) -> list[Point]:
    """One step at each rate, with what trains and the random states put back afterwards."""
    from tunesmith.core.events import silent
    from tunesmith.steps.search_trial import rows_of
    from tunesmith.steps.train import make_loop, resolve
    from tunesmith.steps.train_work import Work

    data, _ = rows_of(recipe)
    with _same_random_states(), tempfile.TemporaryDirectory(prefix="tunesmith-lr-") as folder:
        work = Work.prepare(resolve(recipe, data), data, silent, is_scored=False)
        loop = make_loop(RunFolder(Path(folder)), work)
        before = {name: tensor.detach().clone() for name, tensor in loop.tensors.items()}
        losses: list[float] = []
        try:
            for step, rate in enumerate(wished):
                loss_sum, weight, norm = loop.update(loop.order.rows(step), rate)
                if not (math.isfinite(loss_sum) and math.isfinite(norm)):
                    break
                losses.append(loss_sum / weight)
                emit(Progress(STEP, step + 1, len(wished), f"rate {rate:.1e}", "step", {"train_loss": losses[-1]}))
                if is_broken(smoothed(losses)):
                    break
        finally:
            _restore(loop.tensors, before)
    return [Point(*values) for values in zip(wished, losses, smoothed(losses), strict=False)]


def _restore(tensors: Any, before: Any) -> None:
    import torch

    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(before[name])


@contextmanager
def _same_random_states() -> Iterator[None]:
    """Leave the generators as they were found."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])

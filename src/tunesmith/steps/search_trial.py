"""One trial of a search: train, report every validation, stop early where told to, and say what came of it.

A trial is a training without what a run has besides: the base is not scored, nothing is published, and test rows are
taken away before anything could see them. Its numbers are those that `tunesmith train` gives on the same recipe.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.errors import TunesmithError, UserError
from tunesmith.core.events import Emit, Event, Finding, Metric, Progress, silent
from tunesmith.core.run import RunFolder
from tunesmith.data.write import contents_sha256
from tunesmith.recipe import Recipe, make_recipe

STEP = "search"
FATAL = ("disk_full", "cannot_write")
"""Faults that another trial would meet, too."""
Report = Callable[[int, float], bool]
"""Takes the number of a validation, from 1, and its loss; whether the trial is to end here."""


@dataclass(frozen=True)
class Task:
    """What a trial is given; plain values, so that another process can take it."""

    number: int
    recipe: dict[str, Any]
    folder: Path
    metric: str
    """Empty: the validation loss."""
    rows_sha256: str
    """Of the validation rows that every trial is judged by."""
    title: str = ""
    """Names the progress: `trial 3 of 20`."""


@dataclass(frozen=True)
class Result:
    """What came of a trial."""

    state: Literal["complete", "pruned", "failed"]
    value: float | None = None
    """What decides: the best validation loss, or the metric; None unless complete."""
    validation_loss: float | None = None
    """The best of the trial."""
    best_step: int = 0
    steps: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    trainable: int = 0
    losses: tuple[float, ...] = ()
    """Of every validation."""
    code: str = ""
    fault: str = ""
    """Why it failed."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "losses": list(self.losses)}


class Pruned(TunesmithError):  # noqa: N818 - it is not a fault
    """The trial is not worth going on with."""


def run_trial(task: Task, report: Report, emit: Emit = silent) -> Result:
    """Train and score; faults of the trial itself are its result.

    Raises:
        Interrupted: The user stopped it.
        UserError: What would stop every trial, such as a full disk.
    """
    from tunesmith.models.memory import is_out_of_memory
    from tunesmith.models.meter import MemoryMeter

    started = time.perf_counter()
    losses: list[float] = []
    try:
        with MemoryMeter() as meter:
            found = _train(task, losses, report, emit)
        return replace(found, seconds=time.perf_counter() - started, peak_bytes=meter.peak_bytes)
    except Pruned:
        state, code, fault = "pruned", "", ""
    except UserError as refused:
        if refused.code in FATAL:
            raise
        state, code, fault = "failed", refused.code, refused.message
    except MemoryError:
        state, code, fault = "failed", "out_of_memory", "memory ran out."
    except RuntimeError as broken:
        if not is_out_of_memory(broken):
            raise
        state, code, fault = "failed", "out_of_memory", "memory ran out even with one row at once."
    finally:
        shutil.rmtree(task.folder / "checkpoints", ignore_errors=True)
    best = min((loss for loss in losses if math.isfinite(loss)), default=None)
    seconds = time.perf_counter() - started
    return Result(
        "pruned" if state == "pruned" else "failed",
        validation_loss=best,
        seconds=seconds,
        losses=tuple(losses),
        code=code,
        fault=fault,
    )


def rows_of(recipe: Recipe) -> tuple[Any, str]:
    """The data of a recipe without their test rows, and the sum of the validation rows.

    Raises:
        UserError: The data cannot be read, or are several tasks whose losses have no common measure.
    """
    from tunesmith.data.load import load_data
    from tunesmith.data.mix import refuse_tasks

    refuse_tasks(recipe.data)
    data = replace(load_data(recipe.data, seed=recipe.seed), test=())
    return data, contents_sha256(data.validation)


def _train(task: Task, losses: list[float], report: Report, emit: Emit) -> Result:
    from tunesmith.models.anatomy import num_parameters
    from tunesmith.steps.train import make_loop, resolve
    from tunesmith.steps.train_work import Work

    recipe = make_recipe(task.recipe)
    data, rows_sha256 = rows_of(recipe)
    if rows_sha256 != task.rows_sha256:
        raise UserError("its validation rows are not those of the search.", code="rows_differ")
    shutil.rmtree(task.folder, ignore_errors=True)
    (task.folder / "checkpoints").mkdir(parents=True)
    run = RunFolder(task.folder)
    watch = _Watch(task, losses, report, emit)
    work = Work.prepare(resolve(recipe, data), data, watch, is_scored=False)
    run.write("recipe.yaml", recipe.to_yaml())
    state = make_loop(run, work).fit(watch.check)
    if not math.isfinite(state.best_loss):
        raise UserError("no validation gave a number: it diverged.", code="diverged")
    value = _score(task, work, emit) if task.metric else state.best_loss
    return Result(
        "complete",
        value=value,
        validation_loss=state.best_loss,
        best_step=state.best_step,
        steps=state.step,
        trainable=num_parameters(work.learner.model)[0],
        losses=tuple(losses),
    )


class _Watch:
    """Takes what the loop says: progress goes on under the trial's title, validations are reported."""

    def __init__(self, task: Task, losses: list[float], report: Report, emit: Emit) -> None:
        self.task, self.losses, self.report, self.emit = task, losses, report, emit

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.emit(replace(event, step=STEP, label=self.task.title or event.label))
        elif isinstance(event, Metric) and "validation_loss" in event.values:
            loss = event.values["validation_loss"]
            self.losses.append(float(loss) if isinstance(loss, int | float) else math.inf)
        elif isinstance(event, Finding) and self.task.number == 0:
            self.emit(event)

    def check(self, step: int) -> None:
        """Called by the loop after each validation."""
        if self.report(len(self.losses), self.losses[-1]):
            raise Pruned(f"after step {step}")


def _score(task: Task, work: Any, emit: Emit) -> float:
    """The metric of the weights that the loop kept, on validation rows."""
    from tunesmith.models.predict import LocalPredictor
    from tunesmith.steps.evaluate import evaluate_predictor, metric_of, spread
    from tunesmith.steps.train_work import MAX_VALIDATION_ANSWERS

    def relabel(event: Event) -> None:
        if isinstance(event, Progress):
            emit(replace(event, step=STEP, label=task.title or event.label))

    work.learner.model.eval()
    predictor = LocalPredictor(replace(work.loaded, model=work.learner.model))
    rows = spread(work.data.validation, MAX_VALIDATION_ANSWERS)
    with work.learner.autocast():  # new weights are fp32 beside a base in bf16
        found = evaluate_predictor(
            predictor,
            rows,
            [metric_of(task.metric)],
            generate=work.recipe.generate,
            seed=work.recipe.seed,
            emit=relabel,
            step=STEP,
            num_timed=0,
        )
    return found.scores[0].value

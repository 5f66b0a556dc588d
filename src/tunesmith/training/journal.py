"""What a run writes down: a line of metrics.jsonl for every step and validation, events for whoever watches, trackers.

Every number goes to the file before it is shown. What is not finite is written as null, and said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from accelerate import Accelerator

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Metric, Progress, Warning
from tunesmith.core.run import RunFolder
from tunesmith.models.machine import peak_memory_bytes
from tunesmith.recipe import TrainSettings
from tunesmith.training.checkpoint import TrainingState
from tunesmith.training.guard import SPIKE, SpikeWatch
from tunesmith.training.mixture import Tally, by_source
from tunesmith.training.order import Order

STEP = "train"


@dataclass(frozen=True)
class Validation:
    """The loss over validation rows, per unit of weight (nats per token, or per row for classes)."""

    loss: float
    sums: dict[str, float]
    weight: float
    sources: Mapping[str, Tally] = field(default_factory=dict)
    """Of each source; one without a name where there is one."""


class Journal:
    """The log of one run, in its folder and to its events."""

    def __init__(
        self, run: RunFolder, settings: TrainSettings, order: Order, *, emit: Emit, accelerator: Accelerator
    ) -> None:
        self.run = run
        self.settings = settings
        self.order = order
        self.emit = emit
        self.accelerator = accelerator
        self.spikes = SpikeWatch()
        self.is_between_steps = False
        self._started, self._first_step = time.perf_counter(), 0

    def begin(self, step: int) -> None:
        """Training begins after this step: the clock of `left_seconds` starts, and so do the trackers."""
        self._started, self._first_step = time.perf_counter(), step
        if self.settings.trackers:
            self.accelerator.init_trackers("tunesmith", init_kwargs={"wandb": {"name": self.run.name}})

    def step(
        self,
        state: TrainingState,
        tallies: Mapping[str, Tally],
        *,
        loss: float,
        norm: float,
        rate: float,
        waited: float = 0.0,
    ) -> None:
        """A step that was applied: mean `loss`, gradient's `norm` before clipping, seconds `waited` for its rows."""
        record: dict[str, Any] = {
            "step": state.step,
            "of": self.order.num_steps,
            "epoch": round(state.step / self.order.steps_per_epoch, 4),
            "train_loss": loss,
            **by_source("train_loss", tallies),
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": state.num_tokens,
            "trained_tokens": state.num_trained_tokens,
            "tokens_per_second": state.num_tokens / max(state.train_seconds, 1e-9),
            "wait_seconds": round(waited, 6),
            "memory_bytes": peak_memory_bytes(),
        }
        self.run.append_metrics(record)
        self.accelerator.log({"train/loss": loss, "train/learning_rate": rate, "train/grad_norm": norm}, state.step)
        values = {**record, "left_seconds": self._left_seconds(state.step)}
        self.emit(Progress(STEP, state.step, self.order.num_steps, "training", "step", values))
        ratio = self.spikes.ratio(norm)
        if ratio > SPIKE:
            clipped = f"; clipped to {self.settings.max_grad_norm:g}" if self.settings.max_grad_norm else ""
            text = f"step {state.step}: gradient norm {norm:.1f}, {ratio:.0f} times its median{clipped}"
            values = {"step": state.step, "grad_norm": norm, "median": norm / ratio}
            self.emit(Warning(STEP, "grad_spike", text, values))

    def bad_step(self, state: TrainingState, origins: Sequence[str], what: str) -> None:
        """A step whose `what` (loss, gradient) is not finite; `origins` are some of its rows.

        Raises:
            UserError: There were more than `max_bad_steps` in a row.
        """
        names = ", ".join(dict.fromkeys(origins))
        self.run.append_metrics(
            {"step": state.step, "of": self.order.num_steps, "skipped": f"the {what} is not finite"}
        )
        text = f"step {state.step}: the {what} is not a finite number; the step was skipped (rows {names}, …)"
        self.emit(Warning(STEP, "not_finite", text, {"step": state.step}))
        if state.bad_steps > self.settings.max_bad_steps:
            raise UserError(
                f"{state.bad_steps} steps in a row, the last of them {state.step}, gave a {what} that is not a finite "
                f"number (rows {names}, …).",
                code="not_finite",
                where=str(self.run.path),
                remedy="Lower train.lr, or set model.precision=fp32, or look at these rows.",
            )

    def broken_weights(self, step: int, origins: Sequence[str], name: str) -> NoReturn:
        """A step made weights that are not finite; `name` is the first such tensor.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f'step {step} made weights that are not finite numbers, in "{name}" '
            f"(rows {', '.join(dict.fromkeys(origins))}, …).",
            code="not_finite",
            where=str(self.run.path),
            remedy="Go on from the checkpoint before it with a lower rate: "
            f"tunesmith train --resume {self.run.path} train.lr=… --allow train.lr",
        )

    def nothing_to_learn(self, step: int, origins: Sequence[str]) -> NoReturn:
        """All labels of a step's rows are masked, so it has no loss.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f"step {step} has nothing to learn: every label of its rows is masked "
            f"({', '.join(dict.fromkeys(origins))}, …).",
            code="nothing_trained",
            where=str(self.run.path),
            remedy="Look at these rows with `tunesmith data show`; raise train.tokens_per_step or data.max_length.",
        )

    def validation(self, state: TrainingState, found: Validation, *, is_best: bool, is_joint: bool) -> None:
        """A validation, beside the training loss since the last one."""
        record: dict[str, Any] = {
            "step": state.step,
            "of": self.order.num_steps,
            "validation_loss": found.loss if math.isfinite(found.loss) else None,
            **_finite(by_source("validation_loss", found.sources)),
            "tokens_per_second": state.num_tokens / max(state.train_seconds, 1e-9),
            "memory_bytes": peak_memory_bytes(),
        }
        if "correct" in found.sums and not is_joint:
            record["validation_accuracy"] = found.sums["correct"] / found.weight
        for name, one in found.sources.items():
            if "correct" in one.metrics and len(found.sources) > 1:
                record[f"validation_accuracy.{name}"] = one.metrics["correct"] / one.weight
        train_loss = state.loss_sum / state.loss_weight if state.loss_weight else None  # since the last validation
        sources = {name: Tally(loss, weight) for name, (loss, weight) in state.source_losses.items()}
        self.run.append_metrics({**record, "validation": True})
        self.accelerator.log({"validation/loss": found.loss}, state.step)
        values = {"train_loss": train_loss, **by_source("train_loss", sources)}
        values |= {key: value for key, value in record.items() if key not in ("step", "of")}
        self.emit(Metric(STEP, values, at=state.step, of=self.order.num_steps, is_best=is_best))
        broken = [name for name, one in found.sources.items() if not math.isfinite(one.loss)]
        if broken or not math.isfinite(found.loss):
            whose = f" of {', '.join(broken)}" if any(broken) else ""
            text = f"step {state.step}: the validation loss{whose} is not a finite number; it cannot be the best"
            self.emit(Warning(STEP, "not_finite", text, {"step": state.step}))

    def stopping(self, state: TrainingState) -> None:
        """The user asked to stop, in the midst of the step after this state, or of what follows a step."""
        step = state.step if self.is_between_steps else min(state.step + 1, self.order.num_steps)
        what = f"validating after step {step}" if self.is_between_steps else f"finishing step {step}"
        text = f"{what}, then saving; again to stop now"
        self.emit(Warning(STEP, "stopping", text, {"step": step}))

    def _left_seconds(self, step: int) -> float:
        """Until the last step, validations included, at the pace of this process so far."""
        pace = (time.perf_counter() - self._started) / max(1, step - self._first_step)
        return pace * (self.order.num_steps - step)


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}

"""The one training loop.

A step: every micro-batch adds the gradient of its SUM; then gradients are divided once by the step's whole weight,
over accumulation and ranks together, clipped, and applied.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from tunesmith.core.errors import Interrupted, UserError
from tunesmith.core.events import Emit, Metric, Progress, Saved, Warning
from tunesmith.core.run import RunFolder
from tunesmith.models.machine import peak_memory_bytes
from tunesmith.objectives.base import Features
from tunesmith.recipe import TrainSettings
from tunesmith.training.checkpoint import TrainingState, load_best, load_checkpoint, save_best, save_checkpoint
from tunesmith.training.encode import Rows
from tunesmith.training.frozen import FrozenPlan, plan_frozen, with_states
from tunesmith.training.guard import SPIKE, SpikeWatch, is_out_of_memory, stopping_on_signals
from tunesmith.training.learner import Learner
from tunesmith.training.mixture import Mixture, Tally, by_source
from tunesmith.training.optim import learning_rate_at, make_optimizer, set_learning_rate
from tunesmith.training.order import Order

STEP = "train"
Sampler = Callable[[int], None]
"""Called after each validation with the step; shows what the model answers now."""


@dataclass(frozen=True)
class Validation:
    """The loss over validation rows, per unit of weight (nats per token, or per row for classes)."""

    loss: float
    sums: dict[str, float]
    weight: float
    sources: Mapping[str, Tally] = field(default_factory=dict)
    """Of each source; one without a name where there is one."""


class Loop:
    """One training run: a learner, its rows, an optimiser and a folder."""

    def __init__(  # noqa: PLR0913 - everything a run consists of
        self,
        learner: Learner,
        rows: Rows,
        validation: Rows,
        *,
        settings: TrainSettings,
        run: RunFolder,
        seed: int,
        fingerprint: str,
        emit: Emit,
        mixture: Mixture = Mixture(),
    ) -> None:
        self.learner = learner
        self.mixture = mixture
        self.rows = rows
        self.validation = validation
        self.settings = settings
        self.run = run
        self.seed = seed
        self.fingerprint = fingerprint
        self.emit = emit
        assert isinstance(settings.lr, float), settings.lr
        self.peak_learning_rate = settings.lr
        weights = [row.weight for row in rows.features]
        self.order = Order.plan(rows.lengths, settings, seed, strata=mixture.strata(rows, learner), weights=weights)
        self.accelerator = Accelerator(
            cpu=learner.device.type == "cpu", log_with=list(settings.trackers) or None, project_dir=run.path
        )
        trainable = mixture.trainable(learner)
        self.tensors = {name: parameter for name, (parameter, _) in trainable.items()}
        self.optimizer = make_optimizer(self.tensors, settings, lambda name: trainable[name][1], learner.method.decays)
        self.tallies: dict[str, Tally] = {}
        self.state = TrainingState(micro_tokens=min(settings.micro_tokens, settings.tokens_per_step))
        self.spikes = SpikeWatch()
        self.frozen = self._plan_frozen()
        self._started, self._first_step = time.perf_counter(), 0

    def restore(self) -> int:
        """Go on from the newest valid checkpoint; the step it was written after (0: none)."""
        self.state = load_checkpoint(
            self.run.checkpoints,
            tensors=self.tensors,
            optimizer=self.optimizer,
            fingerprint=self.fingerprint,
            on_damage=lambda damage: self.emit(Warning(STEP, damage.code, damage.line())),
        )
        if self.state.step == 0:
            self.state.micro_tokens = min(self.settings.micro_tokens, self.settings.tokens_per_step)
        self.run.keep_metrics(self.state.step)
        return self.state.step

    def fit(self, sample: Sampler) -> TrainingState:
        """Train to the end, or until validation stops improving; the model ends with the weights to keep.

        Raises:
            Interrupted: The user stopped it; everything is saved.
            UserError: The numbers broke, or the disk is full.
        """
        learner = self.learner
        try:
            with with_states(learner, self.frozen, self.settings, self.run, self.emit) as self.learner:
                return self._fit(sample)
        finally:
            self.learner = learner

    def _plan_frozen(self) -> FrozenPlan:
        """Frozen blocks run once for the rows that are read more than once."""
        if self.mixture.is_joint:
            has_frozen = self.learner.method.num_frozen_blocks(self.learner.model) > 0
            return FrozenPlan(reason="several tasks share the backbone" if has_frozen else "")
        is_read_again = self.order.num_steps > self.order.steps_per_epoch
        rows = self.rows.features if is_read_again else ()
        held_out = self.validation.features if self.settings.validations > 1 else ()
        return plan_frozen(self.learner, (*rows, *held_out), self.settings, self.run)

    def _fit(self, sample: Sampler) -> TrainingState:
        marks = validation_steps(self.order.num_steps, self.settings.validations)
        self._started, self._first_step = time.perf_counter(), self.state.step
        self._start_trackers()
        with stopping_on_signals(self._announce_stop) as request:
            while self.state.step < self.order.num_steps and not self._is_exhausted():
                self._step()
                is_mark = self.state.step in marks
                if is_mark:
                    self._validate()
                    sample(self.state.step)
                if is_mark or request.is_made:
                    self._save()
                if request.is_made and self.state.step < self.order.num_steps:
                    raise Interrupted(f"stopped after step {self.state.step}", resume=self._resume_command())
        if self.settings.keep == "best" and self.state.best_step:
            load_best(self.run.checkpoints, self.state.best_step, self.tensors)
        self.accelerator.end_training()
        return self.state

    @torch.no_grad()
    def validate(self) -> Validation:
        """The loss of the validation rows with the weights as they are."""
        rows = self.validation
        for learner in self._learners():
            learner.model.eval()
        tallies = {name: Tally() for name in rows.names}
        groups = self.mixture.groups(range(len(rows.features)), rows, 2 * self.state.micro_tokens, self.learner)
        for name, group in groups:
            learner = self.mixture.learner(name, self.learner)
            batch = learner.batch([rows.features[row] for row in group])
            loss, metrics = learner.loss(batch)
            tallies[name].add(loss.item(), batch.weight, metrics)
        self._set_training()
        total, divisor = self.mixture.total(tallies)
        sums = Tally()
        for one in tallies.values():
            sums.add(one.loss, one.weight, one.metrics)
        return Validation(total / divisor, sums.metrics, sums.weight, tallies)

    def _step(self) -> None:
        started = time.perf_counter()
        state, settings = self.state, self.settings
        rows = self.order.rows(state.step)
        rate = learning_rate_at(state.step, self.order.num_steps, self.peak_learning_rate, settings)
        loss_sum, weight, norm = self.update(rows, rate)
        is_sound = math.isfinite(loss_sum) and math.isfinite(norm)
        state.step += 1
        state.num_tokens += sum(self.rows.features[row].num_tokens for row in rows)
        seconds = time.perf_counter() - started
        state.train_seconds += seconds
        if is_sound:
            state.bad_steps = 0
            state.loss_sum += loss_sum
            state.loss_weight += weight
            state.num_trained_tokens += round(sum(one.weight for one in self.tallies.values()))
            if len(self.tallies) > 1:
                for name, one in self.tallies.items():
                    before = state.source_losses.get(name, [0.0, 0.0])
                    state.source_losses[name] = [before[0] + one.loss, before[1] + one.weight]
            self._log_step(loss_sum / weight, norm, rate)
        else:
            self._log_bad_step(rows, loss_sum, norm)

    def update(self, rows: Sequence[int], rate: float) -> tuple[float, float, float]:
        """One optimiser step on these rows: their loss sum, its weight, the gradient's norm before clipping.

        Weights stay as they are where one of them is not finite. Counters and logs are left to the caller. Tasks with
        heads of their own give the sum of their weighted means, and 1.
        """
        self._set_training()
        set_learning_rate(self.optimizer, rate)
        loss_sum, weight = self._accumulate(rows)
        norm = self._scale_and_clip(weight)
        if math.isfinite(loss_sum) and math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss_sum, weight, norm

    def _accumulate(self, rows: Sequence[int]) -> tuple[float, float]:
        """Add up the gradients of a step's rows: its loss sum and its weight, over all ranks."""
        while True:
            try:
                self.tallies = self._run_micro_batches(rows)
                break
            except RuntimeError as fault:
                if not is_out_of_memory(fault) or self.state.micro_tokens <= 1:
                    raise
                self.optimizer.zero_grad(set_to_none=True)
                self.state.micro_tokens //= 2
                text = f"memory ran out: from now on {self.state.micro_tokens} tokens at once; steps stay the same"
                self.emit(Warning(STEP, "out_of_memory", text, {"micro_tokens": self.state.micro_tokens}))
        sums = [[one.loss, one.weight] for one in self.tallies.values()]
        totals = torch.tensor(sums, dtype=torch.float64, device=self.learner.device)
        for one, (loss, weight) in zip(self.tallies.values(), self.accelerator.reduce(totals).tolist(), strict=True):
            one.loss, one.weight = loss, weight
        return self.mixture.total(self.tallies)

    def _run_micro_batches(self, rows: Sequence[int]) -> dict[str, Tally]:
        """The sums of each source, with their gradients added up."""
        seen = {row: self._seen(row) for row in rows}
        groups = self.mixture.groups(rows, self.rows, self.state.micro_tokens, self.learner)
        weights: dict[str, float] = {}  # of the whole step, over all ranks
        for name, group in groups:
            weights[name] = weights.get(name, 0.0) + sum(seen[row].weight for row in group)
        tallies = {name: Tally() for name in self.rows.names}
        for name, group in groups[self.accelerator.process_index :: self.accelerator.num_processes]:
            learner = self.mixture.learner(name, self.learner)
            batch = learner.batch([seen[row] for row in group])
            loss, metrics = learner.loss(batch)
            self.accelerator.backward(loss * self.mixture.scale(name, weights[name]))
            tallies[name].add(loss.item(), batch.weight, metrics)
        return tallies

    def _seen(self, row: int) -> Features:
        """A row as this step sees it; a resumed step sees the same."""
        learner = self.mixture.learner(self.rows.source(row), self.learner)
        return learner.objective.renew(self.rows.features[row], learner.layout, (self.seed, self.state.step, row))

    def _learners(self) -> tuple[Learner, ...]:
        return tuple(self.mixture.learners.values()) or (self.learner,)

    def _set_training(self) -> None:
        for learner in self._learners():
            learner.method.set_training(learner.model)

    def _scale_and_clip(self, weight: float) -> float:
        """Divide the summed gradients by the step's weight and clip them: their norm before clipping."""
        gradients = [parameter.grad for parameter in self.tensors.values() if parameter.grad is not None]
        for gradient in gradients:
            if self.accelerator.num_processes > 1:
                gradient.copy_(self.accelerator.reduce(gradient))
        torch._foreach_div_(gradients, weight)
        norm = nn.utils.get_total_norm(gradients)
        if self.settings.max_grad_norm:
            nn.utils.clip_grads_with_norm_(self.tensors.values(), self.settings.max_grad_norm, norm)
        return norm.item()

    def _log_step(self, loss: float, norm: float, rate: float) -> None:
        state = self.state
        record: dict[str, Any] = {
            "step": state.step,
            "of": self.order.num_steps,
            "epoch": round(state.step / self.order.steps_per_epoch, 4),
            "train_loss": loss,
            **by_source("train_loss", self.tallies),
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": state.num_tokens,
            "trained_tokens": state.num_trained_tokens,
            "tokens_per_second": state.num_tokens / max(state.train_seconds, 1e-9),
            "memory_bytes": peak_memory_bytes(),
        }
        self.run.append_metrics(record)
        self.accelerator.log({"train/loss": loss, "train/learning_rate": rate, "train/grad_norm": norm}, state.step)
        values = {**record, "left_seconds": self._left_seconds()}
        self.emit(Progress(STEP, state.step, self.order.num_steps, "training", "step", values))
        ratio = self.spikes.ratio(norm)
        if ratio > SPIKE:
            clipped = f"; clipped to {self.settings.max_grad_norm:g}" if self.settings.max_grad_norm else ""
            text = f"step {state.step}: gradient norm {norm:.1f}, {ratio:.0f} times its median{clipped}"
            values = {"step": state.step, "grad_norm": norm, "median": norm / ratio}
            self.emit(Warning(STEP, "grad_spike", text, values))

    def _left_seconds(self) -> float:
        """Until the last step, validations included, at the pace of this process so far."""
        pace = (time.perf_counter() - self._started) / max(1, self.state.step - self._first_step)
        return pace * (self.order.num_steps - self.state.step)

    def _log_bad_step(self, rows: Sequence[int], loss_sum: float, norm: float) -> None:
        state = self.state
        state.bad_steps += 1
        names = ", ".join(dict.fromkeys(self.rows.origins[row] for row in rows[:3]))
        what = "loss" if not math.isfinite(loss_sum) else "gradient"
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

    def _validate(self) -> None:
        state = self.state
        validation = self.validate()
        is_best = validation.loss < state.best_loss
        if is_best:
            state.best_loss, state.best_step, state.validations_since_best = validation.loss, state.step, 0
            save_best(self.run.checkpoints, state.step, self.tensors)
        else:
            state.validations_since_best += 1
        record: dict[str, Any] = {
            "step": state.step,
            "of": self.order.num_steps,
            "validation_loss": validation.loss if math.isfinite(validation.loss) else None,
            **_finite(by_source("validation_loss", validation.sources)),
            "tokens_per_second": state.num_tokens / max(state.train_seconds, 1e-9),
            "memory_bytes": peak_memory_bytes(),
        }
        if "correct" in validation.sums and not self.mixture.is_joint:
            record["validation_accuracy"] = validation.sums["correct"] / validation.weight
        for name, one in validation.sources.items():
            if "correct" in one.metrics and len(validation.sources) > 1:
                record[f"validation_accuracy.{name}"] = one.metrics["correct"] / one.weight
        train_loss = state.loss_sum / state.loss_weight if state.loss_weight else None  # since the last validation
        sources = {name: Tally(loss, weight) for name, (loss, weight) in state.source_losses.items()}
        state.loss_sum = state.loss_weight = 0.0
        state.source_losses = {}
        self.run.append_metrics({**record, "validation": True})
        self.accelerator.log({"validation/loss": validation.loss}, state.step)
        values = {"train_loss": train_loss, **by_source("train_loss", sources)}
        values |= {key: value for key, value in record.items() if key not in ("step", "of")}
        self.emit(Metric(STEP, values, at=state.step, of=self.order.num_steps, is_best=is_best))

    def _save(self) -> None:
        path = save_checkpoint(
            self.run.checkpoints,
            self.state,
            tensors=self.tensors,
            optimizer=self.optimizer,
            fingerprint=self.fingerprint,
            keep=self.settings.checkpoints,
        )
        self.emit(Saved(STEP, str(path), "checkpoint"))

    def _is_exhausted(self) -> bool:
        return bool(self.settings.patience) and self.state.validations_since_best >= self.settings.patience

    def _announce_stop(self) -> None:
        text = f"finishing step {self.state.step + 1}, then saving; again to stop now"
        self.emit(Warning(STEP, "stopping", text, {"step": self.state.step + 1}))

    def _resume_command(self) -> str:
        return f"tunesmith train --resume {self.run.path}"

    def _start_trackers(self) -> None:
        if self.settings.trackers:
            self.accelerator.init_trackers("tunesmith", init_kwargs={"wandb": {"name": self.run.name}})


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def validation_steps(num_steps: int, validations: int) -> frozenset[int]:
    """After which steps validation rows are scored: evenly spread, the last step always among them."""
    return frozenset(math.ceil(num_steps * number / validations) for number in range(1, validations + 1))

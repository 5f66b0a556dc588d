"""The one training loop.

A step: every micro-batch adds the gradient of its SUM; then gradients are divided once by the step's whole weight,
over accumulation and ranks together, clipped, and applied.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tunesmith.core.errors import Interrupted
from tunesmith.core.events import Emit, Saved, Warning
from tunesmith.core.run import RunFolder
from tunesmith.kernels.native_passes import used
from tunesmith.models.allocator import keep_freed_memory
from tunesmith.models.anatomy import hidden_matrices
from tunesmith.models.memory import let_go
from tunesmith.objectives.base import Batch
from tunesmith.recipe import TrainSettings
from tunesmith.training.ahead import Key
from tunesmith.training.background import CheckpointWriter
from tunesmith.training.checkpoint import TrainingState, load_best, load_checkpoint, remove_superseded
from tunesmith.training.compiling import Compiling
from tunesmith.training.encode import Joined, Rows
from tunesmith.training.frozen import FrozenPlan, plan_frozen, with_states
from tunesmith.training.guard import stopping_on_signals
from tunesmith.training.journal import STEP, Journal, Validation
from tunesmith.training.learner import Learner
from tunesmith.training.mixture import Mixture, Tally
from tunesmith.training.native import settle_native
from tunesmith.training.optim import (
    learning_rate_at,
    make_optimizer,
    optimizer_bytes,
    scale_and_clip,
    set_learning_rate,
)
from tunesmith.training.order import Order
from tunesmith.training.room import Room
from tunesmith.training.step_batches import StepBatches

Sampler = Callable[[int], None]
"""Called after each validation with the step; shows what the model answers now."""


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
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.learner = learner
        self.mixture = mixture
        self.rows = rows
        self.validation = validation
        self.settings = settings
        self.run = run
        self.seed = seed
        self.identity = {"fingerprint": fingerprint} if identity is None else identity
        self.emit = emit
        assert isinstance(settings.lr, float), settings.lr
        self.peak_learning_rate = settings.lr
        strata = mixture.strata(rows, learner)
        self.order = Order.plan(rows.lengths, settings, seed, strata=strata, weights=rows.weights)
        if learner.device.type == "cuda":  # what stays in fp32 multiplies in TF32
            torch.set_float32_matmul_precision("high")
        self.accelerator = Accelerator(
            cpu=learner.device.type == "cpu", log_with=list(settings.trackers) or None, project_dir=run.path
        )
        trainable = mixture.trainable(learner)
        self.tensors = {name: parameter for name, (parameter, _) in trainable.items()}
        hidden = hidden_matrices(learner.model)

        def is_hidden(parameter: nn.Parameter) -> bool:
            return id(parameter) in hidden

        factors = {name: factor for name, (_, factor) in trainable.items()}
        self.optimizer = make_optimizer(self.tensors, settings, factors.__getitem__, learner.method.decays, is_hidden)
        self.tallies: dict[str, Tally] = {}
        self.state = TrainingState()
        self.frozen = self._plan_frozen()
        self.compiling = Compiling(learner, settings, run, emit, is_joint=mixture.is_joint)
        self.room = Room(learner, mixture, self.rows, settings, emit)
        self.room.determinism.begin(run)
        self.native = settle_native(run, settings, learner.device, emit)
        with used(self.native.passes):
            num_tokens = self.order.num_steps * self.rows.num_tokens // self.order.steps_per_epoch
            # as steps will run it: PyTorch compiles again for another setting
            self.room.determinism.run(lambda: self.compiling.choose(self._first_batches, num_tokens))
            to_come = sum(tensor.nbytes for tensor in self.tensors.values())  # gradients
            self.room.choose(run, self.order, to_come + optimizer_bytes(self.tensors, settings, is_hidden))
        self.room.begin(self.state, is_new=True)
        self.journal = Journal(run, settings, self.order, emit=emit, accelerator=self.accelerator)
        self.batches = self._batches().ahead(is_threaded=False)

    def restore(self, allowed: Sequence[str] = ()) -> int:
        """Go on from the newest valid checkpoint; the step it was written after (0: none).

        Raises:
            UserError: It was written with other settings, of which those `allowed` may differ.
        """
        self.state = load_checkpoint(
            self.run.checkpoints,
            tensors=self.tensors,
            optimizer=self.optimizer,
            identity=self.identity,
            allowed=allowed,
            has_best=self.settings.keep == "best",
            on_damage=lambda damage: self.emit(Warning(STEP, damage.code, damage.line())),
        )
        self.room.begin(self.state, is_new=self.state.step == 0)
        remove_superseded(self.run.checkpoints, self.state.step, self.settings.checkpoints)
        self.run.keep_metrics(self.state.step)
        return self.state.step

    def lines(self) -> tuple[tuple[str, str], ...]:
        """What was chosen for memory and speed, and why, in words."""
        return (
            ("memory", self.room.line(self.state)),
            ("kernels", self.native.line()),
            ("blocks", self.compiling.line()),
        )

    def fit(self, sample: Sampler) -> TrainingState:
        """Train to the end, or until validation stops improving; the model ends with the weights to keep.

        Raises:
            Interrupted: The user stopped it; everything is saved.
            UserError: The numbers broke, or the disk is full.
        """
        learner = self.learner
        if learner.device.type == "cpu":
            keep_freed_memory()
        with self.compiling.used(), used(self.native.passes):
            try:
                with with_states(learner, self.frozen, self.settings, self.run, self.emit) as self.learner:
                    return self._fit(sample)
            finally:
                self.learner = learner
                self.room.use(0)

    def _plan_frozen(self) -> FrozenPlan:
        """Frozen blocks run once for the rows that are read more than once."""
        if self.mixture.is_joint:
            has_frozen = self.learner.method.num_frozen_blocks(self.learner.model) > 0
            return FrozenPlan(reason="several tasks share the backbone" if has_frozen else "")
        is_read_again = self.order.num_steps > self.order.steps_per_epoch
        rows = self.rows.features if is_read_again else ()
        held_out = self.validation.features if self.settings.validations > 1 else ()
        num_tokens = self.rows.num_tokens * bool(rows) + self.validation.num_tokens * bool(held_out)
        plan = plan_frozen(self.learner, Joined((rows, held_out)), self.settings, self.run, num_tokens=num_tokens)
        if plan.place:  # their states are found by the row itself, so these are the rows from now on
            if rows:
                self.rows = replace(self.rows, features=plan.rows[: len(rows)])
            if held_out:
                self.validation = replace(self.validation, features=plan.rows[len(rows) :])
        return plan

    def _fit(self, sample: Sampler) -> TrainingState:
        marks = validation_steps(self.order.num_steps, self.settings.validations)
        self.journal.begin(self.state.step)
        announce = partial(self.journal.stopping, self.state)
        ahead = self._batches().ahead(is_threaded=self.learner.frozen is None)
        with stopping_on_signals(announce) as request, self._writer() as writer, ahead as self.batches:
            while self.state.step < self.order.num_steps and not self._is_exhausted():
                self._say_saved(writer)
                self._step()
                self.journal.is_between_steps = True
                is_mark = self.state.step in marks
                if is_mark:
                    self._validate()
                    with used(None):  # as it will answer afterwards
                        sample(self.state.step)
                if is_mark or request.is_made:
                    self.run.sync_metrics()
                    writer.save(self.state)
                if request.is_made:
                    break
                self.journal.is_between_steps = False
            writer.wait()
            self._say_saved(writer)
            if request.is_made:
                raise Interrupted(f"stopped after step {self.state.step}", resume=self._resume_command())
        if self.settings.keep == "best" and self.state.best_step:
            copies = weakref.ref(writer)
            del writer
            let_go(copies)  # the file is mapped beside what training held
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
        groups = self.mixture.groups(range(len(rows)), rows, 2 * self.state.micro_tokens, self.learner)
        for name, group in groups:
            score = partial(self._score, self.mixture.learner(name, self.learner))
            for found in self.room.held_out(self.state, rows, [group], score):
                tallies[name].add(*found)
        self._set_training()
        total, divisor = self.mixture.total(tallies)
        sums = Tally()
        for one in tallies.values():
            sums.add(one.loss, one.weight, one.metrics)
        return Validation(total / divisor, sums.metrics, sums.weight, tallies)

    def _score(self, learner: Learner, group: Sequence[int]) -> tuple[float, float, Mapping[str, float]]:
        """The sums of some validation rows: loss, weight and other numbers."""
        batch = learner.batch([self.validation.features[row] for row in group])
        loss, metrics = learner.loss(batch)
        return loss.item(), batch.weight, metrics

    def _step(self) -> None:
        started, waited = time.perf_counter(), self.batches.wait_seconds
        state, settings = self.state, self.settings
        rows = self.order.rows(state.step)
        rate = learning_rate_at(state.step, self.order.num_steps, self.peak_learning_rate, settings)
        loss_sum, weight, norm = self.update(rows, rate)
        is_sound = math.isfinite(loss_sum) and math.isfinite(norm)
        state.step += 1
        if is_sound:
            self._refuse_broken_weights(rows)
        state.num_tokens += int(self.rows.lengths[list(rows)].sum())
        seconds = time.perf_counter() - started
        state.train_seconds += seconds
        waited = self.batches.wait_seconds - waited
        state.wait_seconds += waited
        if is_sound:
            state.bad_steps = 0
            state.loss_sum += loss_sum
            state.loss_weight += weight
            state.num_trained_tokens += round(sum(one.weight for one in self.tallies.values()))
            if len(self.tallies) > 1:
                for name, one in self.tallies.items():
                    before = state.source_losses.get(name, [0.0, 0.0])
                    state.source_losses[name] = [before[0] + one.loss, before[1] + one.weight]
            self.journal.step(state, self.tallies, loss=loss_sum / weight, norm=norm, rate=rate, waited=waited)
        else:
            state.bad_steps += 1
            what = "loss" if not math.isfinite(loss_sum) else "gradient"
            self.journal.bad_step(state, self._some_origins(rows), what)

    def _refuse_broken_weights(self, rows: Sequence[int]) -> None:
        """A step cannot be taken back: the checkpoint before it stands.

        Raises:
            UserError: What trains is no longer finite after this step.
        """
        if math.isfinite(nn.utils.get_total_norm(self.tensors.values()).item()):
            return
        broken = [name for name, tensor in self.tensors.items() if not bool(torch.isfinite(tensor).all())]
        if broken:  # none where only the norm's squares were too large
            self.journal.broken_weights(self.state.step, self._some_origins(rows), broken[0])

    def _some_origins(self, rows: Sequence[int]) -> list[str]:
        return [self.rows.origins[row] for row in rows[:3]]

    def update(self, rows: Sequence[int], rate: float) -> tuple[float, float, float]:
        """One optimiser step on these rows: their loss sum, its weight, the gradient's norm before clipping.

        Weights stay as they are where one of them is not finite. Counters and logs are left to the caller. Tasks with
        heads of their own give the sum of their weighted means, and 1.
        """
        self._set_training()
        set_learning_rate(self.optimizer, rate)
        with used(self.native.passes):
            loss_sum, weight = self._accumulate(rows)
        norm = self._scale_and_clip(weight)
        if math.isfinite(loss_sum) and math.isfinite(norm):
            self.room.step(self.state, self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        return loss_sum, weight, norm

    def _accumulate(self, rows: Sequence[int]) -> tuple[float, float]:
        """Add up the gradients of a step's rows: its loss sum and its weight, over all ranks."""
        self.tallies = self.room.run(
            self.state, rows, lambda: self._run_micro_batches(rows), lambda: self.optimizer.zero_grad(set_to_none=True)
        )
        sums = [[one.loss, one.weight] for one in self.tallies.values()]
        totals = torch.tensor(sums, dtype=torch.float64, device=self.learner.device)
        for one, (loss, weight) in zip(self.tallies.values(), self.accelerator.reduce(totals).tolist(), strict=True):
            one.loss, one.weight = loss, weight
        return self.mixture.total(self.tallies)

    def _run_micro_batches(self, rows: Sequence[int]) -> dict[str, Tally]:
        """The sums of each source, with their gradients added up."""
        step = self.batches.items(Key(self.state.step, tuple(rows), self.state.micro_tokens))
        weights = next(step)
        for name, weight in weights.items():
            if not weight:
                mine = [row for row in rows if self.rows.source(row) == name]
                self.journal.nothing_to_learn(self.state.step + 1, self._some_origins(mine))
        tallies = {name: Tally() for name in self.rows.names}
        done: list[tuple[str, Tensor, float, Mapping[str, float]]] = []
        for name, batch in step:
            loss, metrics = self.mixture.learner(name, self.learner).loss(batch)
            self.accelerator.backward(loss * self.mixture.scale(name, weights[name]))
            done.append((name, loss.detach().double(), batch.weight, metrics))
        losses = torch.stack([one[1] for one in done]).tolist() if done else []  # read once: a read waits for a GPU
        for loss_sum, (name, _, weight, metrics) in zip(losses, done, strict=True):
            tallies[name].add(loss_sum, weight, metrics)
        return tallies

    def _batches(self) -> StepBatches:
        """The batches of steps: made in a thread ahead of them, but for those that replay kept states."""
        ranks = self.accelerator.process_index, self.accelerator.num_processes
        return StepBatches(self.learner, self.mixture, self.rows, self.order, self.seed, ranks)

    def _first_batches(self) -> list[Batch]:
        """Two micro-batches of the first steps, the same whenever a run goes on."""
        micro_tokens = self.learner.tokens_at_once(self.settings)
        steps = [Key(step, self.order.rows(step), micro_tokens) for step in range(min(2, self.order.num_steps))]
        first, *others = [item[1] for key in steps for item in self._batches().make(key) if isinstance(item, tuple)]
        return [first, *others[-1:]]

    def _learners(self) -> tuple[Learner, ...]:
        return tuple(self.mixture.learners.values()) or (self.learner,)

    def _set_training(self) -> None:
        for learner in self._learners():
            learner.method.set_training(learner.model)

    def _scale_and_clip(self, weight: float) -> float:
        """Divide the summed gradients of all ranks by the step's weight and clip them: their norm before clipping."""
        if self.accelerator.num_processes > 1:
            for parameter in self.tensors.values():
                if parameter.grad is not None:
                    parameter.grad.copy_(self.accelerator.reduce(parameter.grad))
        return scale_and_clip(self.tensors.values(), weight, self.settings.max_grad_norm).item()

    def _validate(self) -> None:
        state = self.state
        validation = self.validate()
        is_best = validation.loss < state.best_loss
        if is_best:
            state.best_loss, state.best_step, state.validations_since_best = validation.loss, state.step, 0
        else:
            state.validations_since_best += 1
        self.journal.validation(state, validation, is_best=is_best, is_joint=self.mixture.is_joint)
        state.loss_sum = state.loss_weight = 0.0
        state.source_losses = {}

    def _writer(self) -> CheckpointWriter:
        return CheckpointWriter(
            self.run.checkpoints,
            tensors=self.tensors,
            optimizer=self.optimizer,
            identity=self.identity,
            num_kept=self.settings.checkpoints,
            has_best=self.settings.keep == "best",
            snapshot=self.settings.snapshot,
        )

    def _say_saved(self, writer: CheckpointWriter) -> None:
        for path in writer.poll():
            self.emit(Saved(STEP, str(path), "checkpoint"))

    def _is_exhausted(self) -> bool:
        return bool(self.settings.patience) and self.state.validations_since_best >= self.settings.patience

    def _resume_command(self) -> str:
        return f"tunesmith train --resume {self.run.path}"


def validation_steps(num_steps: int, validations: int) -> frozenset[int]:
    """After which steps validation rows are scored: evenly spread, the last step always among them."""
    return frozenset(math.ceil(num_steps * number / validations) for number in range(1, validations + 1))

"""How a run fits into memory: blocks computed again, smaller micro-batches; and what is done when memory runs out.

Halving a micro-batch costs little while products stay large, so it comes first; computing blocks again costs a forward
pass but changes no digit, and is all there is for a single long row. Steps always see the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Warning
from tunesmith.core.run import RunFolder
from tunesmith.kernels.recompute import Kept, Recomputation, kept_bytes
from tunesmith.models.anatomy import hidden_matrices
from tunesmith.models.memory import Shrinking, attempt, free_memory_bytes
from tunesmith.recipe import TrainSettings
from tunesmith.training.checkpoint import TrainingState
from tunesmith.training.choices import Choice, decided
from tunesmith.training.determinism import Determinism
from tunesmith.training.encode import Rows
from tunesmith.training.learner import Learner
from tunesmith.training.mixture import Mixture
from tunesmith.training.optimizer_step import no_room_to_step, take_step
from tunesmith.training.order import Order
from tunesmith.training.recompute import RandomState, choose_recompute, recomputable, trial_group

T = TypeVar("T")
Rowset = tuple[int, ...]
SMALL = 512
"""Least tokens of a micro-batch; a smaller one costs more time than computing all blocks again (docs/log.md)."""
TRIED_STEPS = 16
"""Steps among whose micro-batches the largest is looked for."""


class Room:
    """The memory of one run; `state` keeps what it came to, so that a resumed run goes on so."""

    def __init__(self, learner: Learner, mixture: Mixture, rows: Rows, settings: TrainSettings, emit: Emit) -> None:
        self.learner, self.mixture, self.rows, self.settings, self.emit = learner, mixture, rows, settings, emit
        self.learners = tuple(mixture.learners.values()) or (learner,)
        self.parts = [
            Recomputation(recomputable(one.model, one.method.num_frozen_blocks(one.model))) for one in self.learners
        ]
        self.num_blocks = max(len(part.blocks) for part in self.parts)
        self.determinism = Determinism(learner.device, emit)
        self.choice = Choice(0, "not asked yet")

    def choose(self, run: RunFolder, order: Order, to_come: int) -> Choice:
        """How many blocks are computed again from the first step on; `to_come` bytes are gradients and optimiser."""

        def make() -> Choice:
            return choose_recompute(
                self.settings.recompute,
                self.num_blocks,
                probe=lambda: self._kept(order),
                free=lambda: free_memory_bytes(self.learner.device),
                to_come=to_come,
            )

        is_open = self.settings.recompute == "auto"
        self.choice = decided(run, "recompute", make) if is_open else make()
        return self.choice

    def begin(self, state: TrainingState, *, is_new: bool) -> None:
        """Set what a run begins with; one that goes on keeps what its memory asked for."""
        if is_new:
            state.micro_tokens = self.learner.tokens_at_once(self.settings)
        if is_new or self.settings.recompute != "auto":
            state.num_recomputed = int(self.choice.value)

    def line(self, state: TrainingState) -> str:
        """How many blocks are computed again, and why, in words."""
        number = state.num_recomputed
        kept = f"{number} of {self.num_blocks} blocks are computed again" if number else "all blocks are kept"
        why = self.choice.why if number == self.choice.value else "memory ran out before"
        return f"{kept}: {why}"

    def use(self, number: int) -> None:
        """Compute so many blocks again, of each task's model."""
        for part in self.parts:
            part.use(min(number, len(part.blocks)))

    def run(
        self,
        state: TrainingState,
        rows: Sequence[int],
        work: Callable[[], T],
        forget: Callable[[], None],
    ) -> T:
        """What `work` gives with a step's rows, tried again with less at once where memory runs out.

        `forget` takes back the gradients of a broken attempt. Dropout draws the same again.

        Raises:
            UserError: Even a single row does not fit.
        """
        while True:
            self.use(state.num_recomputed)
            random = RandomState()

            def take_back(random: RandomState = random) -> None:
                forget()
                random.restore()

            found, is_done = self.determinism.run(lambda: attempt(work), take_back)
            if is_done:
                assert found is not None
                return found
            take_back()
            self._shrink(state, rows)

    def step(self, state: TrainingState, optimizer: Optimizer) -> None:
        """Change the weights by their gradients; tried once more where memory runs out.

        Raises:
            UserError: It ran out again.
        """
        if take_step(optimizer, self._no_room_to_step):
            state.times_out_of_memory += 1
            text = "memory ran out in the optimiser's step, which was tried again and done; nothing else changes"
            self.emit(Warning("train", "out_of_memory", text))

    def _no_room_to_step(self, is_half_done: bool) -> UserError:
        tensors = {name: tensor for name, (tensor, _) in self.mixture.trainable(self.learner).items()}
        hidden = hidden_matrices(self.learner.model)
        return no_room_to_step(self.settings, self.learner.method, tensors, hidden, is_half_done=is_half_done)

    def held_out(
        self,
        state: TrainingState,
        validation: Rows,
        groups: Iterable[tuple[int, ...]],
        run: Callable[[tuple[int, ...]], T],
    ) -> Iterator[T]:
        """What `run` gives for batches of validation rows, as large as memory lets them be.

        Raises:
            UserError: Even a single row does not fit.
        """
        shrinking = Shrinking(state.held_out_tokens)
        found = shrinking.each(
            groups,
            run,
            cost=lambda group: _num_tokens(group, validation),
            on_halved=lambda limit: self._shrink_held_out(state, limit),
        )
        for _, one in found:
            yield one

    def _shrink_held_out(self, state: TrainingState, num_tokens: int) -> None:
        """Memory ran out in validation: so many tokens at once from now on."""
        state.held_out_tokens = num_tokens
        state.times_out_of_memory += 1
        text = f"memory ran out in validation: from now on {num_tokens} tokens at once there"
        self.emit(Warning("train", "out_of_memory", text, {"held_out_tokens": num_tokens}))

    def _shrink(self, state: TrainingState, rows: Sequence[int]) -> None:
        groups = [group for _, group in self.mixture.groups(rows, self.rows, state.micro_tokens, self.learner)]
        largest = max(_num_tokens(group, self.rows) for group in groups)
        can_halve = any(len(group) > 1 for group in groups)
        is_open = self.settings.recompute == "auto" and state.num_recomputed < self.num_blocks
        state.times_out_of_memory += 1
        if can_halve and (largest >= 2 * SMALL or not is_open):
            state.micro_tokens = max(1, min(state.micro_tokens, largest) // 2)
            text = f"memory ran out: from now on {state.micro_tokens} tokens at once; steps stay the same"
        elif is_open:
            state.num_recomputed = self.num_blocks
            text = f"memory ran out: from now on the backward pass computes all {self.num_blocks} blocks again"
        else:
            raise _too_large(largest, has_all=state.num_recomputed >= self.num_blocks)
        values = {"micro_tokens": state.micro_tokens, "recomputed_blocks": state.num_recomputed}
        self.emit(Warning("train", "out_of_memory", text, values))

    def _kept(self, order: Order) -> Kept:
        """What the largest micro-batch keeps for its backward pass, by a trial on its longest row."""
        micro_tokens = self.learner.tokens_at_once(self.settings)
        found: list[tuple[float, int, Learner, float]] = []
        for step in range(min(TRIED_STEPS, order.num_steps)):
            for name, group in self.mixture.groups(order.rows(step), self.rows, micro_tokens, self.learner):
                one = self.mixture.learner(name, self.learner)
                row, factor = trial_group([group], self.rows.lengths, is_packed=one.layout.is_packed)
                found.append((factor * int(self.rows.lengths[row]), row, one, factor))
        _, row, learner, factor = max(found, key=lambda one: one[0])
        longest = int(self.rows.lengths.argmax())  # it may come later, in a batch of its own
        factor = max(factor, int(self.rows.lengths[longest]) / max(1, int(self.rows.lengths[row])))
        random = RandomState()
        for one in self.learners:
            one.method.set_training(one.model)
        self.use(0)
        try:
            seen = learner.objective.renew(self.rows.features[row], learner.layout, (0, 0, row))
            return _trial(learner, self._blocks(learner), seen).scaled(factor)
        finally:
            random.restore()

    def _blocks(self, learner: Learner) -> tuple[nn.Module, ...]:
        return next(part.blocks for part, one in zip(self.parts, self.learners, strict=True) if one is learner)


def _num_tokens(group: Sequence[int], rows: Rows) -> int:
    return int(sum(rows.lengths[row] for row in group))


def _trial(learner: Learner, blocks: Sequence[nn.Module], row: Any) -> Kept:
    return kept_bytes(learner.model, blocks, lambda: learner.loss(learner.batch([row])))


def _too_large(num_tokens: int, *, has_all: bool) -> UserError:
    more = "" if has_all else " train.recompute=all,"
    return UserError(
        f"memory ran out with a single row of {num_tokens} tokens.",
        code="out_of_memory",
        where="train",
        remedy=f"Set{more} train.optimizer=adamw_8bit or method=lora, or shorten rows with data.max_length.",
    )

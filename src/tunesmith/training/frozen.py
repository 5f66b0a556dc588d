"""Rows that go through frozen blocks once: planned before training, computed at its start, replayed in every epoch.

The states are computed in groups of their own, which follow from the rows' lengths alone, so a resumed run computes
the same bits. They differ from those of a training batch in their last digits only, as any two batches do.
Where a head reads one position of a row (BERT's first, a decoder's last), only that one is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Progress
from tunesmith.core.quantities import count, gib
from tunesmith.core.run import RunFolder
from tunesmith.kernels.activation_cache import FrozenBlocks, KeptStates, capture, replaying
from tunesmith.models.anatomy import blocks, encoder_blocks
from tunesmith.models.memory import free_memory_bytes
from tunesmith.objectives.base import Batch, Features
from tunesmith.recipe import TrainSettings
from tunesmith.training.order import micro_batches

if TYPE_CHECKING:
    from tunesmith.training.learner import Learner

MEMORY_SHARE = 0.25
"""Of the free memory that `auto` takes for states; the rest is for training."""
DISK_SHARE = 0.5
"""Of the free disk that `auto` takes."""
BYTES_OF_A_TOKEN = 80
"""Of a row in memory: two tuples' pointers and the numbers that they point to."""
RECORD = "frozen.json"
"""The file of the run that keeps the decision, so that a resumed run computes the same bits."""
NUM_PROBES = 8
Position = Literal["all", "first", "last"]
Place = Literal["memory", "disk"]


@dataclass(frozen=True)
class FrozenPlan:
    """What is kept and where; without a place nothing is, for the reason given."""

    rows: tuple[Features, ...] = ()
    place: Place | None = None
    reason: str = ""
    """Why nothing is kept; empty also where there is nothing frozen to speak of."""
    blocks: FrozenBlocks | None = None
    position: Position = "all"
    width: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def lengths(self) -> list[int]:
        """Kept positions of each row."""
        return [1 if self.position != "all" else len(row.input_ids) for row in self.rows]

    @property
    def num_bytes(self) -> int:
        return sum(self.lengths) * self.width * self.dtype.itemsize

    def line(self) -> str:
        """The plan in words; empty where nothing is frozen."""
        if self.place is None:
            return self.reason and f"none: {self.reason}"
        assert self.blocks is not None
        kept = "one state a row" if self.position != "all" else "every token's state"
        where = "in memory" if self.place == "memory" else "on disk"
        return (
            f"{len(self.blocks.blocks)} frozen blocks run once a row · features of {count(len(self.rows))} rows, "
            f"{kept}: {gib(self.num_bytes)} {where}"
        )

    def record(self) -> dict[str, Any]:
        """What a resumed run must find again."""
        return {"is_kept": self.place is not None, "reason": self.reason, "num_rows": len(self.rows)} | (
            {"place": self.place, "position": self.position, "bytes": self.num_bytes} if self.place else {}
        )


def plan_frozen(
    learner: Learner, rows: Sequence[Features], settings: TrainSettings, run: RunFolder, *, num_tokens: int = 0
) -> FrozenPlan:
    """Whether the method's frozen blocks can run once for `rows`, the rows that are read more than once.

    `num_tokens` are those of all the rows, which are held in memory beside their states. A run that began with or
    without kept states goes on so.

    Raises:
        UserError: `train.cache` names a place without room for them, or a resumed run lost its room.
    """
    if settings.cache == "off" or not rows:
        return FrozenPlan()
    frozen = _frozen_blocks(learner)
    if not frozen:
        return FrozenPlan()
    before = run.read_json(RECORD)
    if before is not None and not before["is_kept"]:
        return FrozenPlan(reason=before["reason"])
    if before is None and num_tokens * BYTES_OF_A_TOKEN > free_memory_bytes() * MEMORY_SHARE:
        plan = FrozenPlan(reason=f"{count(len(rows))} rows are too many to be held in memory beside their features")
        run.write(RECORD, {**plan.record(), "num_rows": len(rows)})
        return plan
    plan = _examine(learner, tuple(rows), frozen)
    if plan.reason:
        return plan
    plan = _with_place(plan, settings.cache, run, is_needed=before is not None)
    if before is None:
        run.write(RECORD, plan.record())
    return plan


class FrozenStates:
    """The kept states of rows, found by the row itself."""

    def __init__(self, plan: FrozenPlan, kept: KeptStates) -> None:
        assert plan.blocks is not None
        self.blocks = plan.blocks
        self.kept = kept
        self.rows = plan.rows  # as long as they live, their identities stay theirs
        self.short = plan.rows if plan.position == "all" else tuple(_short(row, plan.position) for row in plan.rows)
        self._numbers = {id(row): number for number, row in enumerate(plan.rows)}

    def numbers(self, rows: Sequence[Features]) -> list[int] | None:
        """The places of these rows; None where one of them is not kept."""
        found = [self._numbers.get(id(row)) for row in rows]
        return None if None in found else [number for number in found if number is not None]

    def short_rows(self, numbers: Sequence[int]) -> list[Features]:
        """The rows as the model needs them beside their states: cut to the kept position where it is one."""
        return [self.short[number] for number in numbers]

    def states(self, numbers: Sequence[int], *, is_packed: bool, device: torch.device) -> Tensor:
        """[B, T, D], or [1, T, D] packed."""
        found = self.kept.packed(numbers) if is_packed else self.kept.padded(numbers)
        return found.to(device, non_blocking=True)

    @contextmanager
    def replaying(self, states: Tensor) -> Iterator[None]:
        """Within it the model takes `states` for the output of its frozen blocks."""
        with replaying(self.blocks, states):
            yield


@contextmanager
def with_states(
    learner: Learner, plan: FrozenPlan, settings: TrainSettings, run: RunFolder, emit: Emit
) -> Iterator[Learner]:
    """The learner with the plan's states computed and at hand; what they take is given back afterwards.

    Raises:
        UserError: The disk has no room.
    """
    if plan.place is None:
        yield learner
        return
    file = run.path / "frozen_states" if plan.place == "disk" else None
    try:
        kept = KeptStates(plan.lengths, plan.width, plan.dtype, file)
    except OSError as fault:
        raise _no_room(plan, str(run.path), f"the disk refused: {fault.strerror}") from None
    learner.method.set_training(learner.model)
    lengths = [row.num_tokens for row in plan.rows]
    done = 0
    at_once = learner.tokens_at_once(settings)
    for group in micro_batches(range(len(lengths)), lengths, at_once, is_packed=learner.layout.is_packed):
        rows = [plan.rows[number] for number in group]
        for number, states_TD in zip(group, _states_of(learner, plan, rows), strict=True):
            kept.put(number, states_TD)
        done += len(group)
        emit(Progress("train", done, len(lengths), "frozen blocks", "row"))
    yield replace(learner, frozen=FrozenStates(plan, kept))


def _frozen_blocks(learner: Learner) -> tuple[torch.nn.Module, ...]:
    """The blocks that a replay skips: an encoder's come first, and a decoder's are skipped all or not at all."""
    model = learner.model
    encoder, rest = encoder_blocks(model), blocks(model)
    number = learner.method.num_frozen_blocks(model)
    if encoder and number < len(encoder) + len(rest):
        number = min(number, len(encoder))
    return tuple([*encoder, *rest][:number])


def _examine(learner: Learner, rows: tuple[Features, ...], frozen: tuple[torch.nn.Module, ...]) -> FrozenPlan:
    """What a replay would keep, tried on a few rows; or the reason why there can be none."""
    model = learner.model
    assert not any(weight.requires_grad for block in frozen for weight in block.parameters()), "they train"
    if not learner.objective.is_fixed:
        return FrozenPlan(reason=f"{learner.objective.name} shows the rows differently in every epoch")
    learner.method.set_training(model)
    if any(part.training for block in frozen for part in block.modules()):
        return FrozenPlan(reason="the frozen blocks' dropout is on")
    probes = _spread(rows)
    model.eval()
    try:
        return _try_out(learner, FrozenPlan(rows), probes, frozen)
    finally:
        learner.method.set_training(model)


def _try_out(
    learner: Learner, plan: FrozenPlan, probes: Sequence[Features], frozen: tuple[torch.nn.Module, ...]
) -> FrozenPlan:
    batch = learner.batch(probes)
    with torch.no_grad():
        whole = learner.loss(batch)[0]
    found, states = capture(frozen, lambda: learner.loss(batch))
    plan = replace(plan, blocks=found, width=states.shape[-1], dtype=states.dtype)
    again, slopes = _replayed(learner, found, batch, states)
    if not _is_same(whole, again):
        return FrozenPlan(reason="this model's upper blocks need more of the lower ones than their states")
    position = _position(slopes, probes, learner)
    if position == "all":
        return plan
    short = learner.batch([_short(row, position) for row in probes])
    read = _at(states, [len(row.input_ids) for row in probes], position)
    return replace(plan, position=position) if _is_same(whole, _replayed(learner, found, short, read)[0]) else plan


def _replayed(learner: Learner, frozen: FrozenBlocks, batch: Batch, states: Tensor) -> tuple[Tensor, Tensor]:
    """The loss with the states in place of the blocks, and its slope at each of them."""
    states = states.detach().clone().requires_grad_()
    with torch.enable_grad(), replaying(frozen, states):
        loss = learner.loss(batch)[0]
    (slopes,) = torch.autograd.grad(loss, states)
    return loss.detach(), slopes


def _is_same(whole: Tensor, again: Tensor) -> bool:
    return bool((whole - again).abs() <= 1e-4 * whole.abs().clamp(min=1.0))


def _position(slopes: Tensor, probes: Sequence[Features], learner: Learner) -> Position:
    """Which position of each row the loss depends on, if it is one; labels of tokens need all."""
    lengths = [len(row.input_ids) for row in probes]
    is_per_token = all(len(row.labels) == length for row, length in zip(probes, lengths, strict=True))
    if learner.layout.is_packed or is_per_token:
        return "all"
    is_read = (slopes != 0).any(-1)
    if bool((is_read.sum(1) != 1).any()):
        return "all"
    places = is_read.int().argmax(1).tolist()
    if places == [0] * len(lengths):
        return "first"
    return "last" if places == [length - 1 for length in lengths] else "all"


def _states_of(learner: Learner, plan: FrozenPlan, rows: Sequence[Features]) -> list[Tensor]:
    """The kept states of each row, [T, D] or [1, D]."""
    assert plan.blocks is not None
    batch = learner.batch(rows)
    _, states = capture(plan.blocks.blocks, lambda: learner.loss(batch))
    lengths = [len(row.input_ids) for row in rows]
    if learner.layout.is_packed:
        return list(torch.split(states[0], lengths))
    if plan.position != "all":
        return list(_at(states, lengths, plan.position))
    return [states[number, :length] for number, length in enumerate(lengths)]


def _at(states_BTD: Tensor, lengths: Sequence[int], position: Position) -> Tensor:
    """The states at the position that is read, [B, 1, D]."""
    if position == "first":
        return states_BTD[:, :1]
    places = torch.tensor(lengths, device=states_BTD.device) - 1
    return states_BTD[torch.arange(len(lengths), device=states_BTD.device), places][:, None]


def _short(row: Features, position: Position) -> Features:
    """The row cut to the position that is read."""
    place = slice(0, 1) if position == "first" else slice(-1, None)
    return replace(row, input_ids=row.input_ids[place], token_type_ids=row.token_type_ids[place])


def _spread(rows: Sequence[Features]) -> list[Features]:
    """A few rows of different lengths, the shortest among them; the longest would cost much to try."""
    by_length = sorted(rows, key=lambda row: row.num_tokens)[: max(NUM_PROBES, len(rows) // 2)]
    places = sorted({round(number * (len(by_length) - 1) / (NUM_PROBES - 1)) for number in range(NUM_PROBES)})
    return [by_length[place] for place in places]


def _with_place(plan: FrozenPlan, wish: str, run: RunFolder, *, is_needed: bool) -> FrozenPlan:
    """The plan with its place; `is_needed` where a resumed run must have one."""
    memory, disk = free_memory_bytes(), shutil.disk_usage(run.path).free
    rooms: dict[Place, float]
    if wish == "auto":
        rooms = {"memory": memory * MEMORY_SHARE, "disk": disk * DISK_SHARE}
    else:
        rooms = {"memory": memory} if wish == "memory" else {"disk": disk}
    for place, room in rooms.items():
        if plan.num_bytes <= room:
            return replace(plan, place=place)
    free = f"{gib(memory)} of memory and {gib(disk)} of disk are free"
    if wish != "auto" or is_needed:
        raise _no_room(plan, str(run.path), free)
    return FrozenPlan(reason=f"features of {count(len(plan.rows))} rows take {gib(plan.num_bytes)}; {free}")


def _no_room(plan: FrozenPlan, where: str, why: str) -> UserError:
    return UserError(
        f"features of {count(len(plan.rows))} rows take {gib(plan.num_bytes)}, and {why}.",
        code="no_room",
        where=where,
        remedy="Make room, or start a new run with train.cache=off, which runs the frozen blocks in every epoch.",
    )

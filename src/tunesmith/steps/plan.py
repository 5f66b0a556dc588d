"""Plan: memory and time of a recipe before anything is loaded, on this machine or a named one.

The model is a sketch from its configuration (training/sketch.py), the rows are a sample, and every alternative that is
named was told by the same estimate.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Finished, Progress, Started, silent
from tunesmith.core.plugins import build
from tunesmith.core.quantities import gib
from tunesmith.data.load import load_data
from tunesmith.data.mix import has_tasks
from tunesmith.methods.base import Method
from tunesmith.models.rates import compiler
from tunesmith.recipe import Recipe, override_recipe
from tunesmith.steps.plan_estimate import Draft, Estimate, estimate
from tunesmith.steps.plan_machine import Target, named_target, this_machine
from tunesmith.steps.train import resolve as resolve_recipe
from tunesmith.training.compiling import COLD_SECONDS
from tunesmith.training.memory import Memory
from tunesmith.training.order import tokens_at_once

STEP = "plan"
UNCERTAINTY = 0.15
"""Of memory, each way: ten small trainings were within 13 % (docs/log.md)."""
TIME_UNCERTAINTY = 0.25
"""Of time, each way: ten small trainings were within 19 %, nine of them within 11 % (docs/log.md)."""
ALTERNATIVES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lora rank 16", {"method": {"name": "lora", "rank": 16}}),
    ("lora rank 64", {"method": {"name": "lora", "rank": 64}}),
    ("last_k, 4 blocks", {"method": {"name": "last_k", "k": 4}}),
    ("full", {"method": "full"}),
)
"""What else is tried where the recipe itself fits."""


@dataclass(frozen=True)
class Alternative:
    """Another way to train on the same rows."""

    title: str
    overrides: tuple[str, ...]
    """As the command line takes them."""
    fits: bool
    peak_bytes: int
    seconds: float
    trainable: int

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "overrides": list(self.overrides)}


@dataclass(frozen=True)
class Plan:
    """What a recipe will take."""

    recipe: Recipe
    target: Target
    estimate: Estimate
    alternatives: tuple[Alternative, ...]
    """Other methods where the recipe fits, settings that would fit where it does not."""
    disk_bytes: int
    """Checkpoints, best weights and the model, at most at once."""
    disk_free_bytes: int
    num_rows: int
    notes: tuple[str, ...] = field(default=())
    """What the numbers rest on beside measurement."""

    @property
    def fits(self) -> bool:
        """Whether the peak is within the machine's memory and the files within the disk."""
        return self.peak_bytes <= self.target.memory_bytes and self.has_room_on_disk

    @property
    def has_room_on_disk(self) -> bool:
        return not self.target.is_here or self.disk_bytes <= self.disk_free_bytes

    @property
    def peak_bytes(self) -> int:
        return self.estimate.memory.peak_bytes

    @property
    def seconds(self) -> float:
        """Of training, validations and scoring; reading data and loading weights are not told."""
        return self.estimate.seconds

    @property
    def sentence(self) -> str:
        """`It fits: peak 5.9 of 24.0 GiB (± 15 %), 38 min (25 to 51)`."""
        time = _about(self.seconds)
        room = f"peak {_over(self.peak_bytes, self.target.memory_bytes)} (± {100 * UNCERTAINTY:.0f} %)"
        if self.fits:
            return f"It fits: {room}, {time}"
        if not self.has_room_on_disk:
            return f"The disk is too small: {gib(self.disk_bytes)} are needed, {gib(self.disk_free_bytes)} are free"
        return f"It does not fit: {room}"

    def to_dict(self) -> dict[str, Any]:
        """As `--json` gives it."""
        return {
            "fits": self.fits,
            "machine": self.target.to_dict(),
            "peak_bytes": self.peak_bytes,
            "memory_bytes": self.target.memory_bytes,
            "uncertainty": UNCERTAINTY,
            "time_uncertainty": TIME_UNCERTAINTY,
            "memory": {**self.estimate.memory.parts(), **_peaks(self.estimate.memory)},
            "seconds": self.seconds,
            "time": self.estimate.times(),
            "steps": self.estimate.layout.num_steps,
            "tokens": round(self.estimate.layout.num_steps * self.estimate.layout.tokens),
            "tokens_per_second": self.estimate.tokens_per_second,
            "rows": self.num_rows,
            "is_packed": self.estimate.is_packed,
            "precision": self.estimate.precision,
            "trainable": self.estimate.sizes.trainable,
            "parameters": self.estimate.sizes.total,
            "disk_bytes": self.disk_bytes,
            "disk_free_bytes": self.disk_free_bytes,
            "alternatives": [one.to_dict() for one in self.alternatives],
            "notes": list(self.notes),
        }


def plan(
    recipe: Recipe, *, machine: str = "", emit: Emit = silent, runs: Path = Path("runs"), has_alternatives: bool = True
) -> Plan:
    """Memory and time of a recipe, and what else would fit.

    `machine` is a name such as `h100` or `h100x8`; this machine where empty.

    Raises:
        UserError: Anything in the recipe, the data or the model that training would refuse, or a name that is unknown.
    """
    if has_tasks(recipe.data):
        raise UserError(
            "a plan of several tasks with heads of their own is not told yet.",
            code="not_planned",
            remedy="Plan one of the tasks by itself: the shared model is the same.",
        )
    target = named_target(machine) if machine else this_machine()
    emit(Started(STEP))
    data = load_data(recipe.data, seed=recipe.seed)
    recipe = resolve_recipe(recipe, data)
    draft = Draft.of(recipe, data)
    found = estimate(draft, recipe, target, is_probed=target.is_here)
    alternatives: tuple[Alternative, ...] = ()
    if has_alternatives:
        pick = _others if found.memory.peak_bytes <= target.memory_bytes else _smaller
        alternatives = pick(draft, recipe, target, found, emit)
    emit(Finished(STEP))
    return Plan(
        recipe,
        target,
        found,
        alternatives,
        disk_bytes=_disk_bytes(recipe, found),
        disk_free_bytes=shutil.disk_usage(_existing(runs)).free,
        num_rows=len(data.train),
        notes=(*draft.notes, *target.notes, *_uncounted(recipe, target, found)),
    )


def _uncounted(recipe: Recipe, target: Target, found: Estimate) -> tuple[str, ...]:
    """What training may do that the numbers leave out."""
    wish = recipe.train.compile
    may_pay = found.training_seconds > COLD_SECONDS and (target.is_cuda or bool(compiler()))
    if wish == "on" or (wish == "auto" and may_pay):
        return (f"blocks are told as they are; train.compile={wish} may make them faster",)
    return ()


def _others(draft: Draft, recipe: Recipe, target: Target, own: Estimate, emit: Emit) -> tuple[Alternative, ...]:
    """Other methods on the same rows."""
    mine = recipe.method.summary()
    found = []
    for place, (title, changes) in enumerate(ALTERNATIVES):
        emit(Progress(STEP, place, len(ALTERNATIVES), label=title))
        other = _changed(recipe, changes)
        if other is None or other.method.summary() == mine:
            continue
        made = _tried(draft, other, target, own)
        if made is not None:
            found.append(_alternative(title, changes, made, target))
    return tuple(found)


def _smaller(draft: Draft, recipe: Recipe, target: Target, own: Estimate, emit: Emit) -> tuple[Alternative, ...]:
    """Settings with which the recipe would fit, from the gentlest on; those that are too big are left out."""
    at_once = tokens_at_once(recipe.train, target.device, own.precision)
    ladder = _ladder(draft, recipe, min(at_once, recipe.train.tokens_per_step))
    found: list[Alternative] = []
    for place, (title, changes) in enumerate(ladder):
        emit(Progress(STEP, place, len(ladder), label=title))
        other = _changed(recipe, changes)
        made = None if other is None else _tried(draft, other, target, own)
        if made is not None and made.memory.peak_bytes <= target.memory_bytes:
            found.append(_alternative(title, changes, made, target))
        if len(found) == 3:
            break
    return tuple(found)


def _ladder(draft: Draft, recipe: Recipe, micro_tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Changes that save memory, from those that change no result to those that train something else."""
    smaller = [micro_tokens >> times for times in (1, 2, 3)]
    halves = [{"micro_tokens": tokens} for tokens in smaller if tokens >= draft.rows.longest]
    smallest = halves[-1] if halves else {}
    small = {**smallest, "recompute": "all"}
    steps: list[tuple[str, dict[str, Any]]] = [
        *((f"{half['micro_tokens']} tokens at once", {"train": half}) for half in halves),
        ("blocks computed again", {"train": {"recompute": "all"}}),
        ("both", {"train": small}),
    ]
    if recipe.method.trains_base_weights:
        eight = {**small, "optimizer": "adamw_8bit"}
        steps += [("8-bit AdamW", {"train": {"optimizer": "adamw_8bit"}}), ("8-bit AdamW and those", {"train": eight})]
        lora: Any = {"name": "lora", "rank": 16}
        steps += [("lora rank 16", {"method": lora}), ("lora rank 16 and those", {"method": lora, "train": small})]
    else:
        lora = recipe.method.spec()
    four = {"model": {**recipe.model.model_dump(mode="json"), "quantize": "4bit"}, "method": lora}
    return [*steps, ("on a base of 4 bits", four), ("on a base of 4 bits and those", {**four, "train": small})]


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe | None:
    try:
        other = override_recipe(recipe, **{key: _built(key, value) for key, value in changes.items()})
    except UserError:
        return None
    if other.method.spec() != recipe.method.spec():
        other = override_recipe(other, train={"lr": other.method.learning_rate})
    return other


def _built(key: str, value: Any) -> Any:
    if key != "method":
        return value
    method: Method = build("methods", value)
    return method.spec()


def _tried(draft: Draft, recipe: Recipe, target: Target, own: Estimate) -> Estimate | None:
    """The estimate of another recipe; None where the model or the rows refuse it."""
    try:
        return estimate(draft, recipe, target, factor=own.factor, is_rough=True)
    except UserError:
        return None


def _alternative(title: str, changes: dict[str, Any], made: Estimate, target: Target) -> Alternative:
    memory = made.memory.peak_bytes
    fits = memory <= target.memory_bytes
    return Alternative(title, tuple(_typed(changes)), fits, memory, made.seconds, made.sizes.trainable)


def _typed(changes: dict[str, Any]) -> list[str]:
    """Changes as the command line takes them: `train.recompute=all`."""
    words = []
    for section, value in changes.items():
        if section == "model":
            words.append(f"model.quantize={value['quantize']}")
        elif section == "method":
            spec = value if isinstance(value, dict) else {"name": value}
            words += [f"method.{key}={one}" if key != "name" else f"method={one}" for key, one in spec.items()]
        else:
            words += [f"{section}.{key}={one}" for key, one in value.items()]
    return words


def _peaks(memory: Memory) -> dict[str, int]:
    """Peaks after training, and that of the whole run as the system counts it."""
    return {
        "saving_peak": memory.saving,
        "publishing_peak": memory.publishing,
        "resident_peak": memory.resident_bytes,
    }


def _disk_bytes(recipe: Recipe, found: Estimate) -> int:
    """Checkpoints (one more while it is written), the best weights, and the model."""
    one = found.sizes.trained_bytes + found.sizes.optimizer_bytes
    best = found.sizes.trained_bytes if recipe.train.keep == "best" else 0
    model = found.sizes.trained_bytes if recipe.method.is_adapter else 4 * found.sizes.total
    return one * (recipe.train.checkpoints + 1) + 2 * best + model


def _about(seconds: float) -> str:
    """`38 min (25 to 51)`: a time with its range, in the unit that suits it."""
    units = ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s"))
    unit, name = next(((size, name) for size, name in units if seconds >= 2 * size), (1, "s"))
    if seconds / unit < 10 and unit > 1:
        text = [f"{seconds * (1 + sign * TIME_UNCERTAINTY) / unit:.1f}" for sign in (0, -1, 1)]
    else:
        text = [f"{seconds * (1 + sign * TIME_UNCERTAINTY) / unit:.0f}" for sign in (0, -1, 1)]
    return f"{text[0]} {name} ({text[1]} to {text[2]})"


def _over(part: float, whole: float) -> str:
    unit = 2**30
    return f"{part / unit:.1f} of {whole / unit:.1f} GiB"


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path

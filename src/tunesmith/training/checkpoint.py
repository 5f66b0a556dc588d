"""Checkpoints: everything a run needs to go on bit for bit, published atomically.

`checkpoints/step-000120/` holds the trained tensors, the optimiser's state, the random states and the counters;
`checkpoints/best-000080/` holds the trained tensors of the best validation (of the same step: one file on disk). A
damaged folder is named and passed over. A best is kept as long as a kept checkpoint counts on it.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tunesmith.core.errors import UserError
from tunesmith.core.publish import discard, publishing, refuse_pickles, verify
from tunesmith.training.identity import differences, refuse_differences
from tunesmith.training.tensor_file import write_tensors

FORMAT = 2
WEIGHTS = "model.safetensors"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.ENOSYS)


@dataclass
class TrainingState:
    """The counters of a run, as they are after `step` optimiser steps."""

    step: int = 0
    micro_tokens: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    validations_since_best: int = 0
    bad_steps: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    """Of these, how long steps waited for their rows."""
    loss_sum: float = 0.0
    """Of the steps since the last validation, with its weight."""
    loss_weight: float = 0.0
    num_recomputed: int = 0
    """Blocks that are computed again in the backward pass."""
    held_out_tokens: int = 0
    """Tokens at once in validation since memory ran out there; 0 before."""
    times_out_of_memory: int = 0
    source_losses: dict[str, list[float]] = field(default_factory=dict)
    """The same of each source, where there are several: loss sum and weight."""


class Keep(Protocol):
    """How a tensor of the run is kept for writing: as it is, or as a copy in the processor's memory."""

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor to write, contiguous and on the CPU."""


def as_is(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself where it is on the CPU: for writing before training goes on."""
    return tensor.detach().cpu().contiguous()


@dataclass(frozen=True)
class Snapshot:
    """Everything that a checkpoint holds, as it was after one step."""

    state: TrainingState
    tensors: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    """The optimiser's tensors, as `key:name of the parameter`."""
    counts: Mapping[str, Any]
    """Its plain values, by the same names."""
    random: Mapping[str, Tensor]
    generators: Mapping[str, Any]

    @staticmethod
    def take(
        state: TrainingState,
        tensors: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        keep: Keep = as_is,
    ) -> Snapshot:
        """The run as it is now."""
        entries = dict(_entries(tensors, optimizer))
        return Snapshot(
            copy.deepcopy(state),
            {name: keep(name, parameter) for name, parameter in tensors.items()},
            {name: keep(name, value) for name, value in entries.items() if isinstance(value, Tensor)},
            {name: value for name, value in entries.items() if not isinstance(value, Tensor)},
            _random_tensors(),
            _generators(),
        )

    @property
    def num_bytes(self) -> int:
        """What it takes on disk, and in memory where it is a copy."""
        return sum(one.numel() * one.element_size() for one in (*self.tensors.values(), *self.moments.values()))


def save_checkpoint(
    folder: Path, snapshot: Snapshot, *, identity: Mapping[str, Any], num_kept: int, has_best: bool = True
) -> Path:
    """Publish `step-N`, and `best-N` before it where N is the best step; then delete what is kept no longer.

    `identity` is what decides the run's numbers, as plain values. Without `has_best` no best weights are kept.

    Raises:
        UserError: A number is not finite, or the disk is full or failing; the checkpoints before are as they were.
    """
    state = snapshot.state
    target = folder / f"step-{state.step:06d}"
    best = folder / f"best-{state.step:06d}"
    is_best = has_best and state.best_step == state.step > 0
    sums: dict[str, str] = {}
    if is_best:
        num_bytes = sum(one.numel() * one.element_size() for one in snapshot.tensors.values())
        with publishing(best, sums=sums, needed_bytes=num_bytes, is_replaced=True) as draft:
            sums[WEIGHTS] = write_tensors(draft / WEIGHTS, snapshot.tensors)
    with publishing(target, sums=sums, needed_bytes=snapshot.num_bytes, is_replaced=True) as draft:
        if is_best:
            _link(best / WEIGHTS, draft / WEIGHTS)
        else:
            sums[WEIGHTS] = write_tensors(draft / WEIGHTS, snapshot.tensors)
        sums["optimizer.safetensors"] = write_tensors(draft / "optimizer.safetensors", snapshot.moments)
        sums["random.safetensors"] = write_tensors(draft / "random.safetensors", snapshot.random)
        record = {"format": FORMAT, "identity": identity, "state": _plain_state(state)}
        record |= {"optimizer": snapshot.counts, "random": snapshot.generators}
        (draft / "state.json").write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
    _rotate(_steps(folder), folder, target, num_kept)
    return target


def load_checkpoint(
    folder: Path,
    *,
    tensors: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    on_damage: Callable[[UserError], None],
    allowed: Sequence[str] = (),
    has_best: bool = True,
) -> TrainingState:
    """Restore the newest valid checkpoint into the model, the optimiser and the random generators.

    A run that has none yet starts anew (state of step 0).

    Raises:
        UserError: The checkpoint belongs to other settings, of which none may differ but those `allowed`. (Those that
            an older version did not know are compared before: `identity.completed`.)
    """
    for path in reversed(_steps(folder)):
        try:
            verify(path)
            refuse_pickles(path)
        except UserError as damage:
            on_damage(damage)
            continue
        record = _read_record(path)
        found = differences(record["identity"], json.loads(json.dumps(identity)), is_known_only=True)
        about = "the last checkpoint was written with other settings"
        refuse_differences(found, allowed=allowed, run=str(folder.parent), about=about)
        restore_tensors(path / WEIGHTS, tensors)
        _restore_optimizer(path / "optimizer.safetensors", record["optimizer"], tensors, optimizer)
        _restore_random(path / "random.safetensors", record["random"])
        state = _state_of(record["state"])
        if has_best and state.best_step:
            _forget_lost_best(folder, state, on_damage)
        return state
    return TrainingState()


def remove_superseded(folder: Path, step: int, num_kept: int) -> None:
    """Delete what a kill kept `save_checkpoint` from deleting; `step` is the checkpoint that was restored."""
    steps = [path for path in _steps(folder) if _number(path) <= step]
    if steps:
        _rotate(steps, folder, steps[-1], num_kept)


def newest_identity(folder: Path) -> Mapping[str, Any] | None:
    """The identity in the newest readable checkpoint, unverified: to refuse before anything is loaded."""
    for path in reversed(_steps(folder)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            identity: Mapping[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))["identity"]
            return identity
    return None


def load_best(folder: Path, step: int, tensors: Mapping[str, nn.Parameter]) -> None:
    """Put the trained tensors of the best validation back into the model."""
    path = folder / f"best-{step:06d}"
    verify(path)
    restore_tensors(path / WEIGHTS, tensors)


def restore_tensors(file: Path, tensors: Mapping[str, nn.Parameter]) -> None:
    """Copy a safetensors file into parameters of the same names and shapes.

    Raises:
        UserError: A name is missing or unexpected, or a shape is another.
    """
    saved = load_file(file)
    different = sorted(set(saved) ^ set(tensors)) or [n for n in tensors if saved[n].shape != tensors[n].shape]
    if different:
        raise UserError(f'tensors do not fit the model: "{different[0]}".', code="resume_mismatch", where=str(file))
    with torch.no_grad():
        for name, parameter in tensors.items():
            parameter.copy_(saved[name])


def _number(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _steps(folder: Path) -> list[Path]:
    """The checkpoints, oldest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), key=_number)


def _rotate(steps: Sequence[Path], folder: Path, newest: Path, num_kept: int) -> None:
    """Delete all of `steps` but the `num_kept` up to the newest, and bests that none of them counts on.

    Later steps than the newest are damaged ones, before which the run went on.
    """
    kept = [path for path in steps if _number(path) <= _number(newest)][-num_kept:]
    assert newest in kept, (newest, kept)
    for path in steps:
        if path not in kept:
            discard(path)
    best_steps = set()
    for path in kept:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            best_steps.add(json.loads((path / "state.json").read_text(encoding="utf-8"))["state"]["best_step"])
    for path in folder.glob("best-*"):
        if path.name[5:].isdigit() and _number(path) not in best_steps:
            discard(path)


def _forget_lost_best(folder: Path, state: TrainingState, on_damage: Callable[[UserError], None]) -> None:
    """Weights that are lost cannot be the ones to end with: the best is looked for among validations to come."""
    try:
        verify(folder / f"best-{state.best_step:06d}")
    except UserError as damage:
        on_damage(damage)
        state.best_loss, state.best_step = float("inf"), 0


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError as fault:
        if fault.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def _read_record(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if record["format"] != FORMAT:
        raise UserError(
            f"the checkpoint was written in format {record['format']!r}, and this Tunesmith reads format {FORMAT}.",
            code="other_format",
            where=str(path),
            remedy="Go on with the Tunesmith that wrote it, or start a new run.",
        )
    return record


def _plain_state(state: TrainingState) -> dict[str, Any]:
    values = asdict(state)
    return {**values, "best_loss": None if state.best_loss == float("inf") else state.best_loss}


def _state_of(values: Mapping[str, Any]) -> TrainingState:
    best = values["best_loss"]
    return TrainingState(**{**values, "best_loss": float("inf") if best is None else best})


def _entries(
    tensors: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Iterable[tuple[str, Tensor | float | str | bool | None]]:
    """What the optimiser remembers, by `key:name`. What changes from step to step must lie in its `state`."""
    names = {id(parameter): name for name, parameter in tensors.items()}
    for parameter, entry in optimizer.state.items():
        for key, value in entry.items():
            assert value is None or isinstance(value, Tensor | int | float | str | bool), (key, type(value))
            yield f"{key}:{names[id(parameter)]}", value


def _restore_optimizer(
    file: Path, counts: Mapping[str, Any], tensors: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Every tensor in the type it was saved in; torch's own `load_state_dict` would make bytes to floats."""
    counted_on_device = {
        id(parameter)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for parameter in group["params"]
    }
    optimizer.state.clear()
    for place, value in {**load_file(file), **counts}.items():
        key, _, name = place.partition(":")
        parameter = tensors[name]
        if isinstance(value, Tensor):  # a copy, for the file is mapped and goes when checkpoints rotate
            is_there = key != "step" or id(parameter) in counted_on_device
            optimizer.state[parameter][key] = value.to(parameter.device if is_there else "cpu", copy=True)
        else:
            optimizer.state[parameter][key] = value


def _random_tensors() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda.{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _generators() -> dict[str, Any]:
    version, keys, cached = random.getstate()
    name, array, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": [version, list(keys), cached],
        "numpy": [name, np.asarray(array).tolist(), position, has_gauss, gauss],
    }


def _restore_random(file: Path, generators: Mapping[str, Any]) -> None:
    states = load_file(file)
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda.0" in states:
        torch.cuda.set_rng_state_all([states[f"cuda.{number}"] for number in range(len(states) - 1)])
    version, keys, cached = generators["python"]
    random.setstate((version, tuple(keys), cached))
    name, array, position, has_gauss, gauss = generators["numpy"]
    np.random.set_state((name, np.asarray(array, dtype=np.uint32), position, has_gauss, gauss))

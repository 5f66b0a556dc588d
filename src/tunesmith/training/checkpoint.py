"""Checkpoints: everything a run needs to go on bit for bit, published atomically.

`checkpoints/step-000120/` holds the trained tensors, the optimiser's state, the random states and the counters;
`checkpoints/best-000080/` holds the trained tensors of the best validation. A damaged folder is named and passed over.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith.core.errors import UserError
from tunesmith.core.publish import publishing, verify


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
    loss_sum: float = 0.0
    """Of the steps since the last validation, with its weight."""
    loss_weight: float = 0.0
    source_losses: dict[str, list[float]] = field(default_factory=dict)
    """The same of each source, where there are several: loss sum and weight."""


def save_checkpoint(
    folder: Path,
    state: TrainingState,
    *,
    tensors: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
    keep: int,
) -> Path:
    """Publish `step-N` and delete all but the newest `keep`, once the new one is safe."""
    target = folder / f"step-{state.step:06d}"
    if target.exists():  # published just before a kill, then trained again up to here
        shutil.rmtree(target)
    with publishing(target) as draft:
        save_file(_plain(tensors), draft / "model.safetensors")
        scalars, moments = _optimizer_tensors(optimizer)
        save_file(moments, draft / "optimizer.safetensors")
        save_file(_random_tensors(), draft / "random.safetensors")
        record = {"format": 1, "fingerprint": fingerprint, "state": _finite(asdict(state)), "optimizer": scalars}
        record["random"] = _generators()
        (draft / "state.json").write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def load_checkpoint(
    folder: Path,
    *,
    tensors: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
    on_damage: Callable[[UserError], None],
) -> TrainingState:
    """Restore the newest valid checkpoint into the model, the optimiser and the random generators.

    A run that has none yet starts anew (state of step 0).

    Raises:
        UserError: The checkpoint belongs to other settings.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            verify(path)
        except UserError as damage:
            on_damage(damage)
            continue
        record = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if record["fingerprint"] != fingerprint:
            raise UserError(
                "the checkpoint was written with other settings or data.",
                code="resume_mismatch",
                where=str(path),
                remedy="Restore the run's recipe.yaml, or start a new run.",
            )
        restore_tensors(path / "model.safetensors", tensors)
        _restore_optimizer(path / "optimizer.safetensors", record["optimizer"], optimizer)
        _restore_random(path / "random.safetensors", record["random"])
        values = {**record["state"]}
        values["best_loss"] = float("inf") if values["best_loss"] is None else values["best_loss"]
        return TrainingState(**values)
    return TrainingState()


def save_best(folder: Path, step: int, tensors: Mapping[str, nn.Parameter]) -> None:
    """Publish the trained tensors of the best validation so far; the former best goes afterwards."""
    target = folder / f"best-{step:06d}"
    if target.exists():
        shutil.rmtree(target)
    with publishing(target) as draft:
        save_file(_plain(tensors), draft / "model.safetensors")
    for old in folder.glob("best-*"):
        if old != target:
            shutil.rmtree(old)


def load_best(folder: Path, step: int, tensors: Mapping[str, nn.Parameter]) -> None:
    """Put the trained tensors of the best validation back into the model."""
    path = folder / f"best-{step:06d}"
    verify(path)
    restore_tensors(path / "model.safetensors", tensors)


def restore_tensors(file: Path, tensors: Mapping[str, nn.Parameter]) -> None:
    """Copy a safetensors file into parameters of the same names and shapes.

    Raises:
        UserError: A name is missing or unexpected.
    """
    saved = load_file(file)
    if different := sorted(set(saved) ^ set(tensors)):
        raise UserError(f'tensors do not fit the model: "{different[0]}".', code="resume_mismatch", where=str(file))
    with torch.no_grad():
        for name, parameter in tensors.items():
            parameter.copy_(saved[name])


def _plain(tensors: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu().contiguous() for name, parameter in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    moments = {
        f"{number}.{key}": value.detach().cpu().contiguous()
        for number, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }
    return {"num_tensors": len(moments)}, moments


def _restore_optimizer(file: Path, scalars: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    moments = load_file(file)
    assert len(moments) == scalars["num_tensors"], (len(moments), scalars)
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in moments.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**whole, "state": state})


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


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value == float("inf") else value for key, value in values.items()}

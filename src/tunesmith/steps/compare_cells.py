"""Cells: one row of a comparison with one seed, answered and measured, and kept, so that nothing is done twice.

A cell's file is named by everything that decided it (row, model, data, seed, versions); it is written whole or not at
all. A killed comparison goes on with the cells it has, and a new row costs only its own cells.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tunesmith.core.publish import disk_error
from tunesmith.core.records import Outcome
from tunesmith.core.run import environment
from tunesmith.steps.compare_work import Work

FOLDER = "cells"
DIGITS = 6
"""Decimals that are kept of a class's probability."""
WITHOUT_EFFECT = {"trackers", "checkpoints", "snapshot"}
"""Settings of training that change nothing of what a cell keeps; answers of a row that trains nothing need none."""
VERSIONS = ("tunesmith", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Training:
    """What one training took and gave."""

    run: str
    """The run folder; inside the comparison's folder it is relative to that."""
    seconds: float
    """Wall-clock seconds of the optimiser steps."""
    whole_seconds: float | None
    """Wall-clock seconds of everything: reading rows, loading, training, validating, saving. None where resumed."""
    cpu_seconds: float | None
    """Processor seconds of the same, all threads together: what another process on the machine changes least."""
    peak_bytes: int
    trainable_parameters: int
    total_parameters: int
    disk_bytes: int
    """The weights that answering needs, without tokenizer and card."""
    steps: int = 0
    epochs: float = 0.0
    best_validation_loss: float | None = None


@dataclass(frozen=True)
class Cell:
    """One row with one seed."""

    row: str
    seed: int
    outcomes: tuple[Outcome, ...]
    seconds: float
    seconds_per_answer: float | None
    answer_peak_bytes: int
    training: Training | None = None
    general: tuple[float, float] | None = None
    """Perplexity of general text before and after."""
    notes: Mapping[str, Any] | None = None
    """What a baseline chose."""
    is_reused: bool = False


@dataclass(frozen=True)
class Try:
    """A learning rate that was tried."""

    lr: float
    validation_loss: float | None
    """None where the training diverged."""
    whole_seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Unit:
    """A piece of work that can be done by itself: a cell, or a try of a learning rate."""

    row: str
    seed: int
    lr: float | None = None
    is_try: bool = False

    def file(self, work: Work) -> Path:
        """Where its result lies."""
        stem = f"{slug(self.row)}-{'try' if self.is_try else 'seed'}-{self.seed}"
        ending = "json" if self.is_try else "json.gz"
        return work.out / FOLDER / f"{stem}-{self._key(work)[:16]}.{ending}"

    def _key(self, work: Work) -> str:
        recipe, row = work.recipe, work.row(self.row)
        whole = recipe.model_dump(mode="json", include={"data", "objective", "generate"})
        train = recipe.train.model_dump(mode="json", exclude=WITHOUT_EFFECT) if row.method else {}
        card = work.data.card()
        decided = {
            "recipe": whole | {"train": train},
            "model": work.model(row).model_dump(mode="json"),
            "row": row.model_dump(mode="json", exclude={"title", "lr", "model", "against"}),
            "unit": asdict(self) | {"row": ""},
            "tries": recipe.compare.tries if self.is_try else {},
            "split": recipe.seed,
            "needs": sorted({metric.needs for metric in work.metrics}),
            "held_out": [work.held_out, len(work.examples)],
            "data": [card["files"], card["contents_sha256"]],
            "versions": [environment()["packages"].get(name) for name in VERSIONS],
            "run": _run_key(row.run) if row.run else "",
            "documents": [asdict(one) for one in work.documents] if row.prompting.needs_documents else [],
        }
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def slug(name: str) -> str:
    """A row's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "row"


def save_cell(cell: Cell, file: Path) -> None:
    """Write a cell, whole or not at all."""
    values = {field.name: getattr(cell, field.name) for field in fields(cell) if field.name != "outcomes"}
    values["training"] = asdict(cell.training) if cell.training else None
    labels = list(cell.outcomes[0].probabilities) if cell.outcomes else []
    values["labels"] = labels
    values["outcomes"] = [_packed(outcome, labels) for outcome in cell.outcomes]
    _write(file, gzip.compress(json.dumps(values, ensure_ascii=False).encode(), compresslevel=5, mtime=0))


def load_cell(file: Path) -> Cell:
    """A cell that was written earlier."""
    values = json.loads(gzip.decompress(file.read_bytes()))
    labels = values.pop("labels")
    values["outcomes"] = tuple(_unpacked(one, labels) for one in values["outcomes"])
    values["training"] = Training(**values["training"]) if values["training"] else None
    values["general"] = tuple(values["general"]) if values["general"] else None
    return Cell(**{**values, "is_reused": True})


def save_try(found: Try, file: Path) -> None:
    """Write what came of a learning rate, whole or not at all."""
    _write(file, json.dumps(asdict(found)).encode())


def load_try(file: Path) -> Try:
    """A try that was written earlier."""
    return Try(**json.loads(file.read_bytes()))


def _packed(outcome: Outcome, labels: list[str]) -> dict[str, Any]:
    values = {field.name: getattr(outcome, field.name) for field in fields(outcome)}
    if list(outcome.probabilities) == labels:
        values["probabilities"] = [round(value, DIGITS) for value in outcome.probabilities.values()]
    return values


def _unpacked(values: dict[str, Any], labels: list[str]) -> Outcome:
    given = values["probabilities"]
    probabilities = dict(zip(labels, given, strict=True)) if isinstance(given, list) else given
    return Outcome(**{**values, "probabilities": probabilities})


def _run_key(path: str) -> str:
    manifest = Path(path) / "model" / "manifest.json"
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else path


def _write(file: Path, contents: bytes) -> None:
    draft = file.parent / f".{file.name}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as handle:
            handle.write(contents)
            handle.flush()
            os.fsync(handle.fileno())
        draft.replace(file)
    except OSError as fault:
        raise disk_error(fault, file) from fault
    finally:
        draft.unlink(missing_ok=True)

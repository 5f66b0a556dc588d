"""Several tasks that go on take the run's choices, whatever the machine would choose now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tunesmith.core.events import Event, Saved, Started
from tunesmith.core.run import RunFolder
from tunesmith.models.tiny import write_tiny
from tunesmith.recipe import make_recipe
from tunesmith.steps.train import resume, train
from tunesmith.training.choices import FILE, choices


class StopError(Exception):
    """Stands for a kill after the first checkpoint."""


def test_they_keep_their_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_tiny(tmp_path / "base", "bert")
    sources = []
    for name in ("kinds", "moods"):
        rows = [{"text": f"row {n} of {name}", "label": f"k{n % 2}"} for n in range(16)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append({"path": str(tmp_path / f"{name}.jsonl"), "objective": "classification"})
    recipe = make_recipe(
        {
            "model": {"name": str(tmp_path / "base"), "precision": "auto"},
            "data": {"source": sources, "split": {"validation": 0.25}},
            "train": {"steps": 2, "tokens_per_step": 64, "validations": 2, "lr": 1e-2, "threads": 1},
        }
    )
    begun = []

    def stop(event: Event) -> None:
        if isinstance(event, Saved) and event.what == "checkpoint":
            raise StopError

    def look(event: Event) -> None:
        if isinstance(event, Started) and event.step == "train":
            begun.append(dict(event.lines)["machine"])

    threads = torch.get_num_threads()
    try:
        with pytest.raises(StopError):
            train(recipe, emit=stop, root=tmp_path / "runs")
        (path,) = (tmp_path / "runs").iterdir()
        run = RunFolder(path)
        was = choices(run)["precision"].value
        other = "fp32" if was == "bf16" else "bf16"
        kept = run.read_json(FILE)
        run.write(FILE, kept | {"precision": {"value": other, "why": "as if it had begun elsewhere"}})
        resume(run, emit=look)
    finally:
        torch.set_num_threads(threads)
    assert len(begun) == 1 and begun[0].startswith(f"{other} ") and "1 thread (train.threads is 1)" in begun[0]
    assert run.read_json("report.json")["training"]["precision"] == other

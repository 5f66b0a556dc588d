"""One measurement of Tunesmith's training loop in its own process; called by train_speed.py.

The loop is the one `tunesmith train` runs, with its record in metrics.jsonl; the clock reads its events.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import tunesmith
from tunesmith.core.events import Event, Progress
from tunesmith.core.plugins import build
from tunesmith.core.run import RunFolder
from tunesmith.models.anatomy import num_parameters
from tunesmith.models.load import load_base
from tunesmith.models.machine import peak_memory_bytes, preferred_precision
from tunesmith.objectives.base import Features
from tunesmith.recipe import ModelSettings, TrainSettings
from tunesmith.training.encode import Rows
from tunesmith.training.learner import Learner
from tunesmith.training.loop import Loop


class Clock:
    """Time and counts after every optimiser step."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int, int]] = []
        self.losses: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and "trained_tokens" in event.values:
            counts = int(event.values["tokens"] or 0), int(event.values["trained_tokens"] or 0)
            self.marks.append((time.perf_counter(), *counts))
            self.losses.append(float(event.values["train_loss"] or 0))


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Tokens, labels and seconds of the steps after the warm-up, with the peak memory of the process."""
    torch.set_num_threads(task["num_threads"])
    torch.manual_seed(1)
    method = build("methods", {"name": "lora", "rank": 16} if task["method"] == "lora" else "full")
    precision, _ = preferred_precision(task["config"].get("precision", "auto"))
    loaded = load_base(
        ModelSettings(name=task["model"]),
        "causal",
        trains_base_weights=method.trains_base_weights,
        precision=precision,
        seed=1,
    )
    learner = Learner.make(
        loaded,
        method.attach(loaded.model),
        method=method,
        objective=build("objectives", "sft"),
        precision=precision,
        packing="auto",
    )
    rows = read_rows(Path(task["rows"]))
    settings = TrainSettings(
        epochs=1, tokens_per_step=round(rows.num_tokens / task["num_steps"]), lr=1e-5, validations=1, keep="last"
    )
    clock = Clock()
    few = Rows(rows.features[:1], rows.lengths[:1], rows.origins[:1])
    run = RunFolder.create(Path(task["scratch"]), "speed")
    loop = Loop(learner, rows, few, settings=settings, run=run, seed=1, fingerprint="", emit=clock)
    loop.fit(lambda step: None)
    first, last = clock.marks[task["warmup_steps"] - 1], clock.marks[-1]
    return {
        "seconds": last[0] - first[0],
        "num_tokens": last[1] - first[1],
        "num_labels": last[2] - first[2],
        "num_steps": len(clock.marks) - task["warmup_steps"],
        "num_trainable": num_parameters(learner.model)[0],
        "loss": clock.losses,
        "peak_bytes": peak_memory_bytes(),
        "is_packed": learner.layout.is_packed,
        "precision": precision,
        "versions": {
            "tunesmith": tunesmith.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def read_rows(path: Path) -> Rows:
    """The rows as the objective would have encoded them."""
    features = tuple(
        Features(tuple(row["input_ids"]), tuple(row["labels"]), float(sum(label != -100 for label in row["labels"])))
        for row in json.loads(path.read_text(encoding="utf-8"))
    )
    origins = tuple(f"rows:{number}" for number in range(1, len(features) + 1))
    return Rows(features, tuple(feature.num_tokens for feature in features), origins)


if __name__ == "__main__":
    print("RESULT " + json.dumps(measure(json.loads(sys.argv[1]))))

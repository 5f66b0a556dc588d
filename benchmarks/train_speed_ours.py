"""One measurement of Tunesmith's training loop in its own process; called by train_speed.py and encoder_speed.py.

The loop is the one `tunesmith train` runs, with its record in metrics.jsonl; the clock reads its events.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from side_by_side import matrix_peak

import tunesmith
from tunesmith.core.events import Event, Progress
from tunesmith.core.plugins import build
from tunesmith.core.run import RunFolder
from tunesmith.models.anatomy import head_modules, num_parameters
from tunesmith.models.load import load_base
from tunesmith.models.machine import device, peak_memory_bytes, preferred_precision
from tunesmith.objectives.base import Features
from tunesmith.recipe import ModelSettings, TrainSettings
from tunesmith.training.choices import choices
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
    objective = build("objectives", task.get("objective", "sft"))
    method = build("methods", {"name": "lora", "rank": 16} if task["method"] == "lora" else "full")
    precision, _ = preferred_precision("auto")
    loaded = load_base(
        ModelSettings(name=task["model"]),
        objective.task,
        labels=task.get("labels", ()),
        trains_base_weights=method.trains_base_weights,
        precision=precision,
        seed=1,
    )
    loaded.model.to(device())
    learner = Learner.make(
        loaded,
        method.attach(loaded.model),
        method=method,
        objective=objective,
        precision=precision,
        packing="auto",
    )
    rows = read_rows(Path(task["rows"]))
    settings = TrainSettings(
        epochs=1, tokens_per_step=round(rows.num_tokens / task["num_steps"]), lr=1e-5, validations=1, keep="last"
    )
    clock = Clock()
    run = RunFolder.create(Path(task["scratch"]), "speed")
    loop = Loop(learner, rows, rows.first(1), settings=settings, run=run, seed=1, fingerprint="", emit=clock)
    loop.fit(lambda step: None)
    first, last = clock.marks[task["warmup_steps"] - 1], clock.marks[-1]
    steps = range(task["warmup_steps"], loop.order.num_steps)
    measured_rows = [rows.features[row] for step in steps for row in loop.order.rows(step)]
    layout = "packed" if learner.layout.is_packed else "padded by length"
    return {
        "seconds": last[0] - first[0],
        "num_tokens": last[1] - first[1],
        "num_labels": last[2] - first[2],
        "num_rows": len(measured_rows),
        "num_steps": len(clock.marks) - task["warmup_steps"],
        "num_trainable": num_parameters(learner.model)[0],
        "model_flops": model_flops(learner.model, measured_rows, is_causal=objective.task == "causal"),
        "matrix_flops_per_second": matrix_peak(precision),
        "precision": precision,
        "loss": clock.losses,
        "peak_bytes": peak_memory_bytes(),
        "chosen": [precision, layout, *(f"{name}: {one.value}" for name, one in choices(run).items())],
        "versions": {
            "tunesmith": tunesmith.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def model_flops(model: Any, rows: Sequence[Features], *, is_causal: bool) -> float:
    """The floating-point operations that rows need, forward and backward, padding and recomputation not counted.

    A matrix of I x O costs 2 I O a token forward, as much for its input's gradient, and as much for its own where it
    trains; the head works at labels only. Attention has two products forward and four backward, over half the square
    where it is causal.
    """
    config = model.config
    heads = {id(module) for top in head_modules(model).values() for module in top.modules()}
    per_token = at_labels = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            cost = 2 * module.weight.numel() * (3 if module.weight.requires_grad else 2)
            if id(module) in heads:
                at_labels += cost
            else:
                per_token += cost
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pair = 6 * 2 * width * config.num_attention_heads * config.num_hidden_layers * (0.5 if is_causal else 1.0)
    return float(sum(per_token * row.num_tokens + at_labels * row.weight + pair * row.num_tokens**2 for row in rows))


def read_rows(path: Path) -> Rows:
    """The rows as the objective would have encoded them."""
    features = [
        Features(tuple(row["input_ids"]), tuple(row["labels"]), float(sum(label != -100 for label in row["labels"])))
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    return Rows.of(features, [f"rows:{number}" for number in range(1, len(features) + 1)])


if __name__ == "__main__":
    print("RESULT " + json.dumps(measure(json.loads(sys.argv[1]))))

"""One measurement of TRL's SFTTrainer, in its own process and its own environment; called by train_speed.py.

The trainer is used as its documentation shows it. It is only watched: every micro-batch is counted
as it goes in, and the clock runs between optimiser steps.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from peft import LoraConfig


class Watched(trl.SFTTrainer):
    """The trainer with a count of what goes in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_tokens = 0
        self.num_labels = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Count the tokens of the rows (no padding) and the labels, then train as always."""
        mask = inputs.get("attention_mask")
        self.num_tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        self.num_labels += int((inputs["labels"] != -100).sum())
        return super().training_step(model, inputs, *args, **kwargs)


class Clock(transformers.TrainerCallback):
    """Time and counts after every optimiser step."""

    def __init__(self) -> None:
        self.trainer: Watched | None = None
        self.marks: list[tuple[float, int, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        self.marks.append((time.perf_counter(), self.trainer.num_tokens, self.trainer.num_labels))


def settings(task: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The side's settings, with the rows of a step (or their tokens, for packing) in place of the word `step`."""
    per_step = task["rows_per_step"]
    values = {
        name: per_step if value == "step" and name != "max_length" else value for name, value in task["config"].items()
    }
    if values.get("max_length") == "step":
        values["max_length"] = round(sum(len(row["input_ids"]) for row in rows) / len(rows) * per_step / 64) * 64
    values.setdefault("max_length", max(len(row["input_ids"]) for row in rows))
    return {"per_device_train_batch_size": 1, **values}


def peak_bytes() -> int:
    """The most memory held: on the device where there is one, otherwise resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Tokens, labels and seconds of the steps after the warm-up, with the peak memory of the process."""
    torch.set_num_threads(task["num_threads"])
    rows = json.loads(Path(task["rows"]).read_text(encoding="utf-8"))
    columns = {
        "input_ids": [row["input_ids"] for row in rows],
        "labels": [row["labels"] for row in rows],
    }
    clock = Clock()
    config = trl.SFTConfig(
        output_dir=task["scratch"],
        use_cpu=not torch.cuda.is_available(),
        num_train_epochs=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        learning_rate=1e-5,
        seed=1,
        **settings(task, rows),
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = Watched(
        model=task["model"],
        args=config,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=transformers.AutoTokenizer.from_pretrained(task["model"]),
        peft_config=lora if task["method"] == "lora" else None,
        callbacks=[clock],
    )
    clock.trainer = trainer
    trainer.train()
    first, last = clock.marks[task["warmup_steps"] - 1], clock.marks[-1]
    return {
        "seconds": last[0] - first[0],
        "num_tokens": last[1] - first[1],
        "num_labels": last[2] - first[2],
        "num_steps": len(clock.marks) - task["warmup_steps"],
        "num_trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "peak_bytes": peak_bytes(),
        "versions": {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(measure(json.loads(sys.argv[1]))))

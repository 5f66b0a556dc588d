"""One measurement of transformers' Trainer on an encoder, in its own process; called by encoder_speed.py.

The trainer is used as its documentation shows it; the clock runs between optimiser steps.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers


class Clock(transformers.TrainerCallback):
    """The time after every optimiser step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append(time.perf_counter())


class Watched(transformers.Trainer):
    """The trainer with a count of what goes in."""

    num_tokens: list[int]

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Count the tokens of the rows (no padding), then train as always."""
        self.num_tokens.append(int(inputs["attention_mask"].sum()))
        return super().training_step(model, inputs, *args, **kwargs)


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Tokens and seconds of the steps after the warm-up, with the peak memory of the process."""
    torch.set_num_threads(task["num_threads"])
    torch.manual_seed(1)
    rows = json.loads(Path(task["rows"]).read_text(encoding="utf-8"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        task["model"], num_labels=len(task["labels"]), dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(task["model"])
    config = transformers.TrainingArguments(
        output_dir=task["scratch"],
        use_cpu=not torch.cuda.is_available(),
        num_train_epochs=1,
        per_device_train_batch_size=task["rows_per_step"],
        learning_rate=1e-5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=1,
        **task["config"],
    )
    clock = Clock()
    trainer = Watched(
        model=model,
        args=config,
        train_dataset=[{"input_ids": row["input_ids"], "label": row["labels"][0]} for row in rows],  # type: ignore[arg-type]
        data_collator=transformers.DataCollatorWithPadding(tokenizer, **task["padding"]),
        callbacks=[clock],
    )
    trainer.num_tokens = []
    trainer.train()
    warmup = task["warmup_steps"]
    return {
        "seconds": clock.marks[-1] - clock.marks[warmup - 1],
        "num_tokens": sum(trainer.num_tokens[warmup:]),
        "num_rows": task["rows_per_step"] * (len(clock.marks) - warmup),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {"trainer": transformers.__version__, "torch": torch.__version__},
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(measure(json.loads(sys.argv[1]))))

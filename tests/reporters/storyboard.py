"""The events of a small training and of a demo, as steps would emit them; run as a script it plays one on stderr."""

from __future__ import annotations

import sys
import time

from tunesmith.core.events import Emit, Event, Finished, Metric, Progress, Sample, Saved, Started, Warning

RESUME = "finishes this step and saves; resume with: tunesmith train --resume runs/manual-lora-3"
QUESTION = "What does error E07 mean?"


def training() -> list[Event]:
    """A training of 640 steps, up to its end."""
    lines = (
        ("run", "runs/manual-lora-3 · http://127.0.0.1:8321/studio/runs/manual-lora-3"),
        ("model", "tunesmith/base · 6.2 M parameters · bf16 (6.1 times fp32 on this machine)"),
        ("data", "manual.jsonl · 308 train, 34 validation rows · 18,412 of 41,077 tokens are trained"),
        ("method", "lora rank 16, all-linear · 294,912 trainable (4.8 %)"),
    )
    values = {"run": "runs/manual-lora-3", "steps": 640, "trainable": 294912}
    events: list[Event] = [Started("train", values=values, lines=lines, on_interrupt=RESUME)]
    answers = {80: "The filter the tank the", 160: "The water tank is", 240: "The water tank is empty."}
    losses = {80: (1.914, 1.873), 160: (1.204, 1.251), 240: (0.861, 0.990)}
    for step in range(4, 253, 4):
        speed = {"train_loss": 3.0 / (1 + step / 90), "tokens_per_second": 8155.0, "left_seconds": 97.0}
        events.append(Progress("train", step, 640, label="training", values=speed))
        if step in losses:
            train, validation = losses[step]
            numbers = {
                "train_loss": train,
                "validation_loss": validation,
                "tokens_per_second": 8120,
                "memory_bytes": 1.2 * 2**30,
            }
            events += [
                Metric("train", numbers, at=step, of=640, is_best=step == 240),
                Sample("train", QUESTION, answers[step], at=step),
                Saved("train", f"runs/manual-lora-3/checkpoints/{step}", "checkpoint"),
            ]
        if step == 248:
            message = "step 248: gradient norm 18.2, 9 times its median; clipped to 1.0"
            events.append(Warning("train", "grad_spike", message, {"step": 248, "grad_norm": 18.2}))
    return events


def training_end() -> Finished:
    """How the training ends."""
    table = (
        ("34 validation rows", "before", "after"),
        ("loss", "3.41 [3.22, 3.61]", "0.60 [0.51, 0.70]"),
        ("exact match", "0.00 [0.00, 0.10]", "0.71 [0.53, 0.85]"),
    )
    text = "640 steps · 1.31 M tokens · 8,141 tokens/s · peak 1.2 GiB · best at step 600"
    follow = ("tunesmith compare recipes/manual_compare.yaml", "tunesmith chat runs/manual-lora-3")
    return Finished("train", text, 161.0, {"steps": 640, "best": 600}, follow, table)


def demo() -> list[Event]:
    """A demo in the middle of its comparison, with a training inside."""
    score = {"fact_match": 0.02, "fact_match_low": 0.0, "fact_match_high": 0.06}
    better = {"fact_match": 0.78, "fact_match_low": 0.69, "fact_match_high": 0.86}
    return [
        Started(
            "demo",
            title="Tunesmith 0.1.0 · built-in model tunesmith/base (6.2 M parameters) · built-in manual · no network",
        ),
        Started("prepare", at=1, of=9),
        Finished("prepare", "14 pages of manual → 342 training and 96 held-out questions", 1.2),
        Started("check", at=2, of=9),
        Finished("check", "0 errors, 2 warnings; no held-out question is among the training rows", 2.0),
        Started("compare", at=3, of=9),
        Metric("compare", score, label="zero-shot", seconds=14),
        Metric("compare", better, label="LoRA, rank 16", seconds=74),
        Progress("compare", 2, 3, label="full"),
        Started("train", lines=(("run", "never shown inside a demo"),)),
        Progress("train", 10, 640, values={"left_seconds": 140.0}),
        Metric("train", {"validation_loss": 1.2}, at=10, of=640),
        Progress("train", 544, 640, values={"left_seconds": 21.0}),
    ]


def play(emit: Emit, events: list[Event], pause: float = 0.0) -> None:
    """Emit the events one after the other."""
    for event in events:
        emit(event)
        time.sleep(pause)


if __name__ == "__main__":
    from tunesmith.reporters.choose import choose
    from tunesmith.reporters.text import Output

    scenes = {"training": training(), "demo": demo(), "all": [*training(), training_end()]}
    with choose(Output(sys.stderr)) as reporter:
        play(reporter, scenes[sys.argv[1]], pause=0.005)
        time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0)

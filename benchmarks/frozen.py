"""Training a head on a frozen encoder: Tunesmith against transformers' Trainer, same rows, model and head, in one run.

What is compared are the epochs after the first: Tunesmith runs the frozen blocks once a row, in front of the first.
Both sides begin with the same head, take the same number of rows a step and neither validate nor save in between.

    make bench ENCODER=FOLDER                               with the others; about 3 minutes of it on 1 core
    python benchmarks/frozen.py --model FOLDER --rows 400   a quick look; any encoder, a folder or a name
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from side_by_side import RESULTS, keep, machine, say
from train_speed_rows import SHARED

from tunesmith.core.events import Event, Progress
from tunesmith.core.plugins import build
from tunesmith.core.records import LabelExample, Origin
from tunesmith.core.run import RunFolder
from tunesmith.models.anatomy import blocks
from tunesmith.models.load import Loaded, load_base, load_tokenizer
from tunesmith.recipe import ModelSettings, TrainSettings
from tunesmith.training.encode import Rows, encode_rows
from tunesmith.training.learner import Learner
from tunesmith.training.loop import Loop

ROWS_PER_STEP = 32
LEARNING_RATE = 1e-3
OURS = (
    ("Tunesmith, feature_extraction", "feature_extraction", "auto"),
    ("Tunesmith, last_k 2", {"name": "last_k", "k": 2}, "auto"),
    ("Tunesmith, last_k 2, train.cache=off", {"name": "last_k", "k": 2}, "off"),
)
PEERS: dict[str, dict[str, Any]] = {
    "Trainer, its defaults": {},
    "Trainer, rows of like length": {"train_sampling_strategy": "group_by_length"},
}
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Bench:
    """What all sides share."""

    rows: Rows
    labels: tuple[str, ...]
    model: str
    scratch: Path
    num_epochs: int
    clock: Callable[[], float]

    def load(self) -> Loaded:
        """The model in fp32 with a new head, the same each time."""
        settings = ModelSettings(name=self.model)
        return load_base(settings, "classify", labels=self.labels, trains_base_weights=False, precision="fp32", seed=1)


@dataclass(frozen=True)
class Measured:
    """One side: the seconds of each epoch (what comes before the first belongs to it) and its last loss."""

    title: str
    epochs: tuple[float, ...]
    loss: float

    @property
    def later(self) -> float:
        """The median epoch after the first, in seconds."""
        return statistics.median(self.epochs[1:])


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        bench = prepare(options, Path(scratch))
        measured = []
        for title, method, cache in OURS:
            say(f"{title} …")
            measured.append(ours(bench, title, build("methods", method), cache))
        for title, extra in PEERS.items():
            say(f"{title} …")
            measured.append(peer(bench, title, extra))
        publish(measured, bench, options)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an encoder: a folder or a name")
    parser.add_argument("--rows", type=int, default=1000, help="training rows of banking77 (1000)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each side (3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each side (1)")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor: its time alone, for a machine that others use (wall)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (benchmarks/results)")
    return parser.parse_args()


def prepare(options: argparse.Namespace, scratch: Path) -> Bench:
    """The rows as ids, and their labels."""
    file = SHARED / "banking77" / "train.csv"
    if not file.is_file():
        sys.exit("banking77 is not there; benchmarks/train_speed_rows.py says where it is looked for")
    with file.open(encoding="utf-8", newline="") as opened:
        table = list(csv.DictReader(opened))
    labels = tuple(sorted({row["category"] for row in table}))
    chosen = table[:: max(1, len(table) // options.rows)][: options.rows]
    examples = [
        LabelExample(origin=Origin("train.csv", line), text=row["text"], label=row["category"])
        for line, row in enumerate(chosen, 2)
    ]
    tokenizer = load_tokenizer(ModelSettings(name=options.model))
    rows, _ = encode_rows(examples, build("objectives", "classification"), tokenizer, max_length=128, labels=labels)
    return Bench(rows, labels, options.model, scratch, options.epochs, CLOCKS[options.clock])


def ours(bench: Bench, title: str, method: Any, cache: Any) -> Measured:
    """The loop that `tunesmith train` runs; its events tell the time."""
    marks: list[float] = []
    losses: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, Progress) and "train_loss" in event.values:
            marks.append(bench.clock())
            losses.append(float(event.values["train_loss"] or 0))

    torch.manual_seed(1)
    loaded, rows = bench.load(), bench.rows
    objective = build("objectives", "classification")
    learner = Learner.make(
        loaded, method.attach(loaded.model), method=method, objective=objective, precision="fp32", packing="auto"
    )
    settings = TrainSettings(
        epochs=bench.num_epochs,
        tokens_per_step=round(rows.num_tokens / len(rows.features) * ROWS_PER_STEP),
        lr=LEARNING_RATE,
        validations=1,
        keep="last",
        cache=cache,
    )
    run = RunFolder.create(bench.scratch, "frozen")
    started = bench.clock()
    loop = Loop(learner, rows, rows.first(1), settings=settings, run=run, seed=1, fingerprint="", emit=watch)
    loop.fit(lambda step: None)
    size = loop.order.steps_per_epoch
    ends = [started, *marks[size - 1 :: size]]
    return Measured(title, _differences(ends[: bench.num_epochs + 1]), statistics.mean(losses[-size:]))


class Watch(transformers.TrainerCallback):
    """The time at the end of every epoch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.marks: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append(self.clock())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append(self.clock())


def peer(bench: Bench, title: str, extra: dict[str, Any]) -> Measured:
    """transformers' Trainer as its documentation shows it, with the same weights frozen."""
    loaded = bench.load()
    model = build("methods", "feature_extraction").attach(loaded.model)
    features = [{"input_ids": list(row.input_ids), "label": row.labels[0]} for row in bench.rows.features]
    config = transformers.TrainingArguments(
        output_dir=str(bench.scratch),
        use_cpu=not torch.cuda.is_available(),
        num_train_epochs=bench.num_epochs,
        per_device_train_batch_size=ROWS_PER_STEP,
        learning_rate=LEARNING_RATE,
        save_strategy="no",
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        seed=1,
        **extra,
    )
    watch = Watch(bench.clock)
    trainer = transformers.Trainer(
        model=model,
        args=config,
        train_dataset=features,  # type: ignore[arg-type]
        data_collator=transformers.DataCollatorWithPadding(loaded.tokenizer),
        callbacks=[watch],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Measured(title, _differences(watch.marks), losses[-1])


def publish(measured: list[Measured], bench: Bench, options: argparse.Namespace) -> None:
    """Print the table, keep it with the raw numbers, and put our lines into latest.json."""
    num_rows = len(bench.rows.features)
    head, cached, plain, *peers = measured
    best = min(peers, key=lambda one: one.later)
    keep(
        options.out,
        "frozen",
        comparisons=[
            comparison("frozen/feature_extraction/trainer", head, peers[0], num_rows, options),
            comparison("frozen/feature_extraction/trainer_best", head, best, num_rows, options),
            comparison("frozen/last_k/cache_off", cached, plain, num_rows, options),
        ],
        raw={
            "machine": machine(options.threads),
            "clock": options.clock,
            "measured": [asdict(one) for one in measured],
        },
        page=report(measured, bench, options),
    )


def comparison(name: str, ours: Measured, peer: Measured, num_rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Rows per second of the epochs after the first."""
    is_own = peer.title.startswith("Tunesmith")
    return {
        "benchmark": name,
        "ours": round(num_rows / ours.later, 1),
        "peer": round(num_rows / peer.later, 1),
        "peer_version": "tunesmith" if is_own else f"transformers {transformers.__version__}",
        "ratio": round(peer.later / ours.later, 2),
        "settings": f"rows/s of epochs 2 to {options.epochs}, {options.clock} clock; peer: {peer.title}",
    }


def report(measured: list[Measured], bench: Bench, options: argparse.Namespace) -> str:
    """The results as a Markdown page."""
    rows, model = bench.rows, bench.load().model
    size = f"{model.config.model_type}, {len(blocks(model))} blocks, {model.num_parameters() / 1e6:.1f} M parameters"
    lines = [
        "# A head on a frozen encoder, against transformers' Trainer",
        "",
        f"{machine(options.threads)} · {options.clock} clock",
        f"{len(rows.features):,} rows of banking77, {rows.num_tokens / len(rows.features):.1f} tokens each on average; "
        f"{size}, fp32; about "
        f"{ROWS_PER_STEP} rows a step. The first epoch includes what comes before it: for Tunesmith the one pass "
        f"through the frozen blocks. `ratio` is the line's later epoch over that of Tunesmith with the same method.",
        "",
        f"| | first epoch | epochs 2 to {options.epochs}, median | rows/s | ratio | loss of the last epoch |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for one in measured:
        base = measured[1] if "last_k" in one.title else measured[0]
        lines.append(
            f"| {one.title} | {one.epochs[0]:.2f} s | {one.later:.3f} s | {len(rows.features) / one.later:,.0f} "
            f"| {one.later / base.later:.1f} | {one.loss:.3f} |"
        )
    return "\n".join(lines) + "\n"


def _differences(marks: list[float]) -> tuple[float, ...]:
    return tuple(after - before for before, after in pairwise(marks))


if __name__ == "__main__":
    main()

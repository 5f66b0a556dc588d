"""The loss after 50 steps: Tunesmith as it chooses to run, against a plain fp32 loop; rows and order alike.

The reference is written out below: transformers' and PEFT's own layers in fp32, row by row, without packing, autocast
or any kernel of ours, with PyTorch's AdamW. Both begin with the same weights, and both are scored by the reference's
way on rows that neither has seen.

    make bench                               with the others
    python benchmarks/loss_parity.py         about 3 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import RESULTS, keep, machine, say
from train_speed_ours import read_rows
from train_speed_rows import lengths, make_rows

from tunesmith.core.events import Event, Progress
from tunesmith.core.plugins import build
from tunesmith.core.run import RunFolder
from tunesmith.models.load import Loaded, load_base
from tunesmith.models.machine import Precision, preferred_precision
from tunesmith.objectives.base import Features
from tunesmith.recipe import ModelSettings, TrainSettings
from tunesmith.training.choices import choices
from tunesmith.training.encode import Rows
from tunesmith.training.learner import Learner
from tunesmith.training.loop import Loop
from tunesmith.training.optim import learning_rate_at

NUM_STEPS = 50
ROWS_PER_STEP = 8
NUM_HELD_OUT = 64
RATES = {"lora": 2e-4, "full": 5e-5}
METHODS: dict[str, Any] = {"lora": {"name": "lora", "rank": 16}, "full": "full"}


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows, where_from = make_rows(NUM_STEPS * ROWS_PER_STEP + NUM_HELD_OUT, folder / "rows.json")
        whole = read_rows(folder / "rows.json")
        train = whole.first(NUM_STEPS * ROWS_PER_STEP)
        held_out = [whole.features[row] for row in range(len(train), len(whole))]
        results = {}
        for name in METHODS:
            say(f"{name} …")
            results[name] = measure(name, train, held_out, folder, options.model)
    lines = [
        {
            "benchmark": f"loss_parity/{name}",
            "ours": round(one["ours"], 5),
            "peer": round(one["reference"], 5),
            "peer_version": "plain fp32 loop",
            "ratio": round(one["difference"], 6),
            "settings": f"held-out loss after {NUM_STEPS} steps; the ratio is the relative difference",
        }
        for name, one in results.items()
    ]
    keep(
        options.out,
        "loss_parity",
        comparisons=lines,
        raw={"machine": machine(options.threads), "rows": lengths(rows), "measured": results},
        page=report(results, lengths(rows), where_from, options),
    )
    if any(one["difference"] > 0.01 for one in results.values()):
        sys.exit("the losses differ by more than 1 %")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tunesmith/base", help="a decoder: a folder or a name (tunesmith/base)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads (all cores)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (benchmarks/results)")
    return parser.parse_args()


def measure(name: str, rows: Rows, held_out: Sequence[Features], scratch: Path, model: str) -> dict[str, Any]:
    """Both sides' losses of every step, and on the held-out rows at the end."""
    settings = TrainSettings(
        steps=NUM_STEPS,
        tokens_per_step=round(rows.num_tokens / NUM_STEPS),
        lr=RATES[name],
        validations=1,
        keep="last",
    )
    precision, _ = preferred_precision("auto")
    loop, losses, chosen = ours(name, rows, settings, scratch, model, precision)
    plain, plain_losses = reference(name, rows, settings, loop, model)
    weights = {key: value.detach().clone() for key, value in loop.learner.trainable().items()}
    expected = held_out_loss(plain, held_out)
    own = dict(plain.named_parameters())
    with torch.no_grad():
        for key, value in weights.items():
            own[key].copy_(value)
    found = held_out_loss(plain, held_out)
    worst = max(abs(a - b) / b for a, b in zip(losses, plain_losses, strict=True))
    return {
        "ours": found,
        "reference": expected,
        "difference": abs(found - expected) / expected,
        "worst_step": worst,
        "chosen": chosen,
        "losses": losses,
        "reference_losses": plain_losses,
    }


def ours(
    name: str, rows: Rows, settings: TrainSettings, scratch: Path, model: str, precision: Precision
) -> tuple[Loop, list[float], list[str]]:
    """The loop that `tunesmith train` runs, as it chooses to run."""
    losses: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, Progress) and "train_loss" in event.values:
            losses.append(float(event.values["train_loss"] or math.nan))

    method = build("methods", METHODS[name])
    loaded = _load(name, model, precision)
    torch.manual_seed(1)
    attached = method.attach(loaded.model)
    objective = build("objectives", "sft")
    learner = Learner.make(
        loaded, attached, method=method, objective=objective, precision=precision, packing=settings.packing
    )
    run = RunFolder.create(scratch, f"parity-{name}")
    loop = Loop(learner, rows, rows.first(1), settings=settings, run=run, seed=1, fingerprint="", emit=watch)
    loop.fit(lambda step: None)
    layout = "packed" if learner.layout.is_packed else "padded"
    return loop, losses, [precision, layout, *(f"{key}: {one.value}" for key, one in choices(run).items())]


def reference(
    name: str, rows: Rows, settings: TrainSettings, loop: Loop, model: str
) -> tuple[torch.nn.Module, list[float]]:
    """The plain loop: one row at a time, fp32, the layers of transformers and PEFT as they are."""
    torch.manual_seed(1)
    plain = build("methods", METHODS[name]).attach(_load(name, model, "fp32").model).train()
    named = {key: value for key, value in plain.named_parameters() if value.requires_grad}
    matrices = [value for value in named.values() if value.ndim >= 2]
    vectors = [value for value in named.values() if value.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.999))
    assert isinstance(settings.lr, float)
    losses = []
    for step in range(NUM_STEPS):
        chosen = [rows.features[row] for row in loop.order.rows(step)]
        weight = sum(row.weight for row in chosen)
        total = 0.0
        for row in chosen:
            loss = row_loss(plain, row)
            (loss / weight).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(list(named.values()), settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, NUM_STEPS, settings.lr, settings)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / weight)
    return plain, losses


def row_loss(model: Any, row: Features) -> torch.Tensor:
    """The summed negative log-likelihood of a row's labels, in nats."""
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
    return F.cross_entropy(logits.float(), torch.tensor(row.labels[1:]), reduction="sum")


@torch.no_grad()
def held_out_loss(model: Any, rows: Sequence[Features]) -> float:
    """Nats per label."""
    model.eval()
    return sum(row_loss(model, row).item() for row in rows) / sum(row.weight for row in rows)


def report(results: dict[str, Any], size: dict[str, float], where_from: str, options: argparse.Namespace) -> str:
    """The results as a Markdown page."""
    lines = [
        f"# The loss after {NUM_STEPS} steps, against a plain fp32 loop",
        "",
        machine(options.threads),
        f"{options.model}, {size['rows']} rows of {where_from}, {NUM_HELD_OUT} of them held out; {ROWS_PER_STEP} rows "
        f"a step in the same order, the same first weights. Held-out loss in nats per learnt token, computed alike for "
        f"both; the last column is the largest relative difference of a step's training loss.",
        "",
        "| method | Tunesmith | reference | difference | largest of a step |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, one in results.items():
        lines.append(
            f"| {name} ({'; '.join(one['chosen'])}) | {one['ours']:.4f} | {one['reference']:.4f} "
            f"| {one['difference']:.3%} | {one['worst_step']:.3%} |"
        )
    return "\n".join(lines) + "\n"


def _load(name: str, model: str, precision: Precision) -> Loaded:
    trains_base = build("methods", METHODS[name]).trains_base_weights
    return load_base(ModelSettings(name=model), "causal", trains_base_weights=trains_base, precision=precision, seed=1)


if __name__ == "__main__":
    main()

"""What a checkpoint costs a training: full training of about 100 M parameters, where everything is saved.

    python benchmarks/checkpoint_cost.py            # about 5 minutes on 2 cores, 3 GB of memory, 3 GB of disk

Blocks of steps alternate: one with a checkpoint written beside it, one without. What the first take longer, with the
copy before and the wait after, is the checkpoint's cost. It is set beside the default interval: a tenth of the run.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from side_by_side import RESULTS, keep
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.core.events import silent
from tunesmith.core.run import RunFolder
from tunesmith.methods.full import Full
from tunesmith.models.load import Loaded
from tunesmith.models.machine import describe, preferred_precision
from tunesmith.models.tiny import tiny
from tunesmith.objectives.base import Features
from tunesmith.objectives.clm import CLM
from tunesmith.recipe import TrainSettings
from tunesmith.training.background import CheckpointWriter, snapshot_bytes
from tunesmith.training.encode import Rows
from tunesmith.training.learner import Learner
from tunesmith.training.loop import Loop

LIMIT = 0.03
"""The most of the time that checkpoints may take at the default interval."""
RUN_STEPS = (10, 20, 100)
"""Lengths of runs to tell the share of, in steps of the default 8,192 tokens: at 10, every step is saved."""


@dataclass(frozen=True)
class Block:
    """Steps one after the other, in seconds of the clock and of the processor (all threads)."""

    seconds: float
    processor_seconds: float


def make_loop(folder: Path, tokens: int, size: dict[str, Any]) -> Loop:
    """Full training of a random Llama on random rows, fp32 weights, products in the machine's precision."""
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=32_000, tie_word_embeddings=True, max_position_embeddings=1024, **size)
    model = LlamaForCausalLM(config)
    precision, _ = preferred_precision("auto")
    loaded = Loaded(model, tiny("llama", "causal")[1], "causal", (), "random")
    learner = Learner.make(
        loaded, Full().attach(model), method=Full(), objective=CLM(), precision=precision, packing="auto"
    )
    ids = torch.randint(0, 32_000, (4 * tokens // 256, 256)).tolist()
    rows = Rows.of([Features(tuple(one), tuple(one), 255.0) for one in ids], [f"row {n}" for n in range(len(ids))])
    settings = TrainSettings(tokens_per_step=tokens, micro_tokens=min(tokens, 1024), lr=1e-5, steps=1000)
    run = RunFolder.create(folder, "cost")
    return Loop(learner, rows, rows.first(1), settings=settings, run=run, seed=1, fingerprint="", emit=silent)


def writer_of(loop: Loop, snapshot: Any) -> CheckpointWriter:
    """Writes every step as a best one: the most that there is to write."""
    return CheckpointWriter(
        loop.run.checkpoints,
        tensors=loop.tensors,
        optimizer=loop.optimizer,
        identity={},
        num_kept=2,
        has_best=True,
        snapshot=snapshot,
    )


def block(loop: Loop, num_steps: int, writer: CheckpointWriter | None) -> Block:
    """So many steps, with a checkpoint from before the first to after the last where there is a writer."""
    wall, processor = time.perf_counter(), time.process_time()
    if writer is not None:
        loop.state.best_step = loop.state.step
        writer.save(loop.state)
    for _ in range(num_steps):
        loop.update(loop.order.rows(loop.state.step), 1e-5)
        loop.state.step += 1
    if writer is not None:
        writer.wait()
        writer.poll()
    return Block(time.perf_counter() - wall, time.process_time() - processor)


def measure(folder: Path, rounds: int, tokens: int, size: dict[str, Any]) -> dict[str, Any]:
    """The cost of a checkpoint in seconds, beside training and with training waiting."""
    loop = make_loop(folder, tokens, size)
    block(loop, 1, None)  # the optimiser's state comes to be
    step_seconds = block(loop, 1, None).seconds
    waiting = writer_of(loop, "off")
    foreground = [block(loop, 0, waiting).seconds for _ in range(2)][-1]
    num_steps = max(1, math.ceil(3 * foreground / step_seconds))
    beside = writer_of(loop, "on")
    block(loop, num_steps, beside)  # the copies' memory comes to be
    copying = time.perf_counter()
    loop.state.step += 1
    beside.save(loop.state)
    copying = time.perf_counter() - copying
    beside.wait()
    pairs: list[tuple[Block, Block]] = []
    for number in range(rounds):
        order = (beside, None) if number % 2 else (None, beside)
        found = {writer is None: block(loop, num_steps, writer) for writer in order}
        pairs.append((found[False], found[True]))
        print(f"round {number + 1} of {rounds}: {pairs[-1][0].seconds:.2f} s with, {pairs[-1][1].seconds:.2f} without")
    return {
        "num_parameters": sum(tensor.numel() for tensor in loop.tensors.values()),
        "checkpoint_bytes": snapshot_bytes(loop.tensors, loop.optimizer),
        "tokens_per_step": tokens,
        "steps_per_block": num_steps,
        "with": [asdict(one) for one, _ in pairs],
        "without": [asdict(one) for _, one in pairs],
        "step_seconds": statistics.median(one.seconds for _, one in pairs) / num_steps,
        "copy_seconds": copying,
        "foreground_seconds": foreground,
        "cost_seconds": statistics.median(one.seconds - other.seconds for one, other in pairs),
        "cost_processor_seconds": statistics.median(
            one.processor_seconds - other.processor_seconds for one, other in pairs
        ),
    }


def shares(found: dict[str, Any]) -> list[dict[str, float]]:
    """The share of the time in runs of the default settings: 8,192 tokens a step, ten checkpoints a run."""
    defaults = TrainSettings()
    step = found["step_seconds"] * defaults.tokens_per_step / found["tokens_per_step"]
    rows = []
    for num_steps in RUN_STEPS:
        interval = step * num_steps / defaults.validations
        values = {key: found[f"{key}_seconds"] / (interval + found[f"{key}_seconds"]) for key in ("cost", "foreground")}
        rows.append({"num_steps": num_steps, "interval_seconds": interval, **values})
    return rows


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    found = result["found"]
    lines = [
        "# What a checkpoint costs",
        "",
        f"Full training of {found['num_parameters'] / 1e6:.0f} M parameters on {result['machine']}, "
        f"{result['num_threads']} threads, {result['at'][:10]}: {found['checkpoint_bytes'] / 1e9:.2f} GB a checkpoint. "
        f"A step of {found['tokens_per_step']:,} tokens takes {found['step_seconds']:.2f} s.",
        "",
        f"Beside training a checkpoint costs {found['cost_seconds']:.2f} s ({found['copy_seconds']:.2f} s of it "
        f"the copy; {found['cost_processor_seconds']:.2f} s of the processor); with training waiting, "
        f"{found['foreground_seconds']:.2f} s.",
        "",
        "| steps in the run | between checkpoints | beside training | training waiting |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one['num_steps']} | {one['interval_seconds']:.0f} s | {one['cost']:.1%} | {one['foreground']:.1%} |"
        for one in result["shares"]
    ]
    lines += [
        "",
        "Default settings: 8,192 tokens a step, ten checkpoints a run. `python benchmarks/checkpoint_cost.py`",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=1024, help="a step of the measurement")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's own choice")
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder of checkpoint_cost.json and .md")
    words = parser.parse_args()
    if words.threads:
        torch.set_num_threads(words.threads)
    size: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": words.layers,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    }
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # on the disk that runs are on
        found = measure(Path(folder), words.rounds, words.tokens, size)
    result = {
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": describe().to_dict().get("processor") or platform.processor(),
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "found": found,
        "shares": shares(found),
        "limit": LIMIT,
    }
    longest = result["shares"][-1]
    line = {
        "benchmark": "checkpoint_cost/share",
        "ours": round(longest["cost"], 4),
        "peer": round(longest["foreground"], 4),
        "peer_version": "itself, training waiting",
        "ratio": round(longest["cost"], 4),
        "settings": f"share of the time in a run of {longest['num_steps']} steps of 8,192 tokens, ten checkpoints",
    }
    keep(words.to, "checkpoint_cost", comparisons=[line], raw=result, page=page(result))


if __name__ == "__main__":
    main()

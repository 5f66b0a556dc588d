"""Training speed on ragged chat rows: Tunesmith against TRL's SFTTrainer, same model, rows and machine, in one run.

What is counted is the same on both sides: tokens of the rows (never padding) through whole optimiser steps, after
warm-up. Every measurement is a process of its own; rounds alternate, and each setting's median round is reported.

    make bench                                     everything, about 30 minutes on 2 cores
    python benchmarks/train_speed.py --peer-python .venv-peer/bin/python --rounds 1 --rows 48    a quick look
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from train_speed_rows import lengths, make_rows

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ROWS_PER_STEP = 8
WARMUP_STEPS = 2

# SmolLM2-135M's shape with random weights: what is measured does not depend on what the weights say.
MODEL = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
}
EIGHT_ONES = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
BF16_WEIGHTS = {"model_init_kwargs": {"dtype": "bfloat16"}}
NO_RECOMPUTATION = {"gradient_checkpointing": False}

# TRL 1.x computes its loss in chunks, without whole logits, in every setting.
PEERS: dict[str, dict[str, Any]] = {
    "batch 8, its defaults": {"per_device_train_batch_size": 8},
    "batch 8, bf16 weights": {"per_device_train_batch_size": 8, **BF16_WEIGHTS, **NO_RECOMPUTATION},
    "batch 1 x 8": {**EIGHT_ONES, **NO_RECOMPUTATION},
    "batch 1 x 8, bf16 weights": {**EIGHT_ONES, **BF16_WEIGHTS, **NO_RECOMPUTATION},
    "batch 1 x 8, fp32 throughout": {**EIGHT_ONES, **NO_RECOMPUTATION, "bf16": False},
    "batch 8 by length, bf16 weights": {
        "per_device_train_batch_size": 8,
        "train_sampling_strategy": "group_by_length",
        **BF16_WEIGHTS,
        **NO_RECOMPUTATION,
    },
    "padding-free, bf16 weights": {
        "per_device_train_batch_size": 8,
        "padding_free": True,
        "max_length": None,
        **BF16_WEIGHTS,
        **NO_RECOMPUTATION,
    },
    "packed, about 8 rows, bf16 weights": {
        "per_device_train_batch_size": 1,
        "packing": True,
        "max_length": 1344,
        **BF16_WEIGHTS,
        **NO_RECOMPUTATION,
    },
}
DEFAULTS = "batch 8, its defaults"


@dataclass
class Measured:
    """One side at one setting, all rounds."""

    side: str
    setting: str
    method: str
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return statistics.median(one["num_tokens"] / one["seconds"] for one in self.rounds)

    @property
    def labels_per_second(self) -> float:
        return statistics.median(one["num_labels"] / one["seconds"] for one in self.rounds)

    @property
    def peak_bytes(self) -> int:
        return max(one["peak_bytes"] for one in self.rounds)


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows, where_from = make_rows(options.rows, folder / "rows.json")
        make_model(folder / "model")
        measured = [
            Measured(side, setting, method)
            for method in options.methods
            for side, setting in [("tunesmith", "its defaults"), *(("trl", name) for name in options.peers)]
        ]
        for number in range(options.rounds):
            for one in measured:
                say(f"round {number + 1} of {options.rounds}: {one.method}, {one.side}, {one.setting} …")
                python = sys.executable if one.side == "tunesmith" else options.peer_python
                answer = run_one(one, python, folder, rows, options.threads)
                one.rounds.append(answer)
                say(f"    {answer['num_tokens'] / answer['seconds']:,.0f} tokens/s")
    publish(measured, rows, where_from, options)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="a Python that has TRL (`make bench` makes one)")
    parser.add_argument("--rows", type=int, default=96, help="rows of the one epoch that is measured (96)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side (all cores)")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, help="the peer's settings (all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (benchmarks/results)")
    return parser.parse_args()


def make_model(folder: Path) -> None:
    """The model with random weights (seed 1), saved in bf16 as the published one is, with a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.models.load import load_tokenizer
    from tunesmith.recipe import ModelSettings

    tokenizer = load_tokenizer(ModelSettings(name="tunesmith/base"))
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**MODEL, **special)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_one(one: Measured, python: str, folder: Path, rows: list[dict[str, Any]], num_threads: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    script = HERE / ("train_speed_ours.py" if one.side == "tunesmith" else "train_speed_trl.py")
    task = {
        "rows": str(folder / "rows.json"),
        "scratch": str(folder / "scratch"),
        "model": str(folder / "model"),
        "method": one.method,
        "num_threads": num_threads,
        "warmup_steps": WARMUP_STEPS,
        "num_steps": len(rows) // ROWS_PER_STEP,
        "config": {} if one.side == "tunesmith" else PEERS[one.setting],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
    answer = subprocess.run(
        [python, str(script), json.dumps(task)], capture_output=True, text=True, check=False, env=environment
    )
    lines = [line for line in answer.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{one.side} ({one.setting}) failed:\n{answer.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


def publish(measured: list[Measured], rows: list[dict[str, Any]], where_from: str, options: argparse.Namespace) -> None:
    """Print the table, and keep it with the raw numbers."""
    options.out.mkdir(parents=True, exist_ok=True)
    comparisons = [line for method in options.methods for line in compare(measured, method)]
    text = report(measured, rows, where_from, options)
    print(text)
    keep_latest(options.out, "train_speed/", comparisons)
    raw = {"machine": machine(options.threads), "rows": lengths(rows), "measured": [asdict(one) for one in measured]}
    (options.out / "train_speed.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    (options.out / "train_speed.md").write_text(text, encoding="utf-8")


def keep_latest(folder: Path, prefix: str, comparisons: list[dict[str, Any]]) -> None:
    """Put one benchmark's comparisons into latest.json, in place of those it had; other benchmarks' stay."""
    file = folder / "latest.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    kept = [line for line in kept if not line["benchmark"].startswith(prefix)]
    file.write_text(json.dumps(kept + comparisons, indent=2) + "\n", encoding="utf-8")


def compare(measured: list[Measured], method: str) -> list[dict[str, Any]]:
    """Ours against the peer at its defaults, and against the best of its settings."""
    ours = next(one for one in measured if one.side == "tunesmith" and one.method == method)
    peers = [one for one in measured if one.side == "trl" and one.method == method]
    best = max(peers, key=lambda one: one.tokens_per_second)
    default = next(one for one in peers if one.setting == DEFAULTS)
    return [
        {
            "benchmark": f"train_speed/{method}/{title}",
            "ours": round(ours.tokens_per_second, 1),
            "peer": round(peer.tokens_per_second, 1),
            "peer_version": f"trl {peer.rounds[0]['versions']['trl']}",
            "ratio": round(ours.tokens_per_second / peer.tokens_per_second, 2),
            "settings": f"tokens/s of rows; TRL: {peer.setting}",
        }
        for title, peer in (("trl_batch_8", default), ("trl_best", best))
    ]


def report(measured: list[Measured], rows: list[dict[str, Any]], where_from: str, options: argparse.Namespace) -> str:
    """The results as a Markdown page."""
    size = lengths(rows)
    lines = [
        "# Training speed against TRL's SFTTrainer",
        "",
        f"{datetime.now(UTC):%Y-%m-%d} · {machine(options.threads)}",
        f"Llama, 135 M parameters (SmolLM2-135M's shape), random weights; {size['rows']} rows of {where_from}; tokens "
        f"per row: median {size['median']}, mean {size['mean']}, longest {size['longest']}; {size['labels']:.0%} are "
        f"learnt. About {ROWS_PER_STEP} rows per optimiser step on both sides; LoRA of rank 16 on all matrices. Median "
        f"of {options.rounds} rounds. `ratio` is Tunesmith's tokens/s over this line's.",
    ]
    for method in options.methods:
        mine = [one for one in measured if one.method == method]
        lines += [
            "",
            f"## {method}",
            "",
            "| | tokens/s | learnt tokens/s | peak memory | ratio |",
            "|---|--:|--:|--:|--:|",
        ]
        for one in mine:
            ratio = mine[0].tokens_per_second / one.tokens_per_second
            lines.append(
                f"| {name_of(one)} | {one.tokens_per_second:,.0f} | {one.labels_per_second:,.0f} "
                f"| {one.peak_bytes / 2**30:.2f} GiB | {ratio:.2f} |"
            )
    return "\n".join(lines) + "\n"


def name_of(one: Measured) -> str:
    """Side, version and setting."""
    first = one.rounds[0]
    if one.side == "tunesmith":
        layout = "packed" if first["is_packed"] else "padded by length"
        return f"**Tunesmith {first['versions']['tunesmith']}**, its defaults ({first['precision']}, {layout})"
    return f"TRL {first['versions']['trl']}, {one.setting}"


def machine(num_threads: int) -> str:
    """Processor, threads and versions in one line."""
    import torch
    import transformers

    from tunesmith.models.machine import processor_name

    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{processor_name()}, {num_threads} threads, {versions}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

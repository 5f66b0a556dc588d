"""Training speed on chat rows: Tunesmith against TRL's SFTTrainer, same model, rows and machine, in one run.

What is counted is the same on both sides: tokens of the rows (never padding) through whole optimiser steps, after
warm-up. Every measurement is a process of its own; rounds alternate, and each setting's median round is reported.

    make bench                                     with the others
    python benchmarks/train_speed.py --peer-python .venv-peer/bin/python --rounds 1 --rows 48     a quick look, 15 min
    … --shape llama3-8b --row-tokens 4096 --rows 64 --rows-per-step 2 --methods lora              on a GPU
    … --shape llama3-8b --rows 800 --rows-per-step 50 --methods lora                  ragged, about 8,000 tokens a step
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import RESULTS, Side, best_of, comparison, keep, machine, memory_line, run_rounds, speed_line
from train_speed_rows import lengths, make_rows

WARMUP_STEPS = 2

# Random weights: what is measured does not depend on what the weights say.
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "qwen2-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "llama3.2-3b": {
        "vocab_size": 128_256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "llama2-7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
    "llama3-8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
BF16_WEIGHTS = {"model_init_kwargs": {"dtype": "bfloat16"}}
NO_RECOMPUTATION = {"gradient_checkpointing": False}
FP32 = {"bf16": False, **NO_RECOMPUTATION}
"""What a processor that has no bf16 products is better off with; TRL's default is bf16 everywhere."""
DEFAULTS = "batch 8, its defaults"

# TRL 1.x computes its loss in chunks, without whole logits, in every setting.
PEERS: dict[str, dict[str, Any]] = {
    DEFAULTS: {"per_device_train_batch_size": "step"},
    "batch 8, bf16 weights": {"per_device_train_batch_size": "step", **BF16_WEIGHTS, **NO_RECOMPUTATION},
    "batch 1 x 8": {"gradient_accumulation_steps": "step", **NO_RECOMPUTATION},
    "batch 1 x 8, bf16 weights": {"gradient_accumulation_steps": "step", **BF16_WEIGHTS, **NO_RECOMPUTATION},
    "batch 1 x 8, fp32 throughout": {"gradient_accumulation_steps": "step", **FP32},
    "batch 8, fp32 throughout": {"per_device_train_batch_size": "step", **FP32},
    "padding-free, fp32 throughout": {
        "per_device_train_batch_size": "step",
        "padding_free": True,
        "max_length": None,
        **FP32,
    },
    "batch 8 by length, bf16 weights": {
        "per_device_train_batch_size": "step",
        "train_sampling_strategy": "group_by_length",
        **BF16_WEIGHTS,
        **NO_RECOMPUTATION,
    },
    "padding-free, bf16 weights": {
        "per_device_train_batch_size": "step",
        "padding_free": True,
        "max_length": None,
        **BF16_WEIGHTS,
        **NO_RECOMPUTATION,
    },
    "padding-free": {
        "per_device_train_batch_size": "step",
        "padding_free": True,
        "max_length": None,
        **NO_RECOMPUTATION,
    },
    "packed, about 8 rows, bf16 weights": {"packing": True, "max_length": "step", **BF16_WEIGHTS, **NO_RECOMPUTATION},
    # On a GPU, with kernels of the same kind as ours.
    "Liger, bf16 weights": {
        "per_device_train_batch_size": "step",
        "use_liger_kernel": True,
        **BF16_WEIGHTS,
        **NO_RECOMPUTATION,
    },
    "Liger, padding-free, flash attention": {
        "per_device_train_batch_size": "step",
        "use_liger_kernel": True,
        "padding_free": True,
        "max_length": None,
        "model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "flash_attention_2"},
        **NO_RECOMPUTATION,
    },
    "Liger, batch 1 accumulated": {
        "gradient_accumulation_steps": "step",
        "use_liger_kernel": True,
        **BF16_WEIGHTS,
        **NO_RECOMPUTATION,
    },
}
MASTER_WEIGHTS = frozenset(
    {
        *(DEFAULTS, "batch 1 x 8", "padding-free"),
        *("batch 1 x 8, fp32 throughout", "batch 8, fp32 throughout", "padding-free, fp32 throughout"),
    }
)
"""Settings whose weights are fp32: what full training is fairly compared with, since ours are."""
ON_CPU = tuple(name for name in PEERS if not name.startswith("Liger"))


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows, where_from = make_rows(options.rows, folder / "rows.json", row_tokens=options.row_tokens)
        make_model(folder / "model", SHAPES[options.shape])
        sides = [side for method in options.methods for side in make_sides(options, method, folder, len(rows))]
        run_rounds(sides, options.rounds, options.threads)
    groups = {method: [side for side in sides if side.group == method] for method in options.methods}
    name = "train_speed" if options.shape == "smollm2-135m" else f"train_speed_{options.shape}"
    name += f"_{options.row_tokens}" if options.row_tokens else ""
    keep(
        options.out,
        name,
        comparisons=[line for method, group in groups.items() for line in compare(name, method, group)],
        raw={
            "machine": machine(options.threads),
            "rows": lengths(rows),
            "shape": SHAPES[options.shape],
            "measured": [side.kept() for side in sides],
        },
        page=report(groups, lengths(rows), where_from, options),
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="a Python that has TRL (`make bench` makes one)")
    parser.add_argument("--shape", default="smollm2-135m", choices=SHAPES, help="the model (smollm2-135m)")
    parser.add_argument("--rows", type=int, default=96, help="rows of the one epoch that is measured (96)")
    parser.add_argument("--rows-per-step", type=int, default=8, help="rows of an optimiser step, about (8)")
    parser.add_argument("--row-tokens", type=int, default=0, help="every row so long; 0: ragged, as they are (0)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side (all cores)")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument("--peers", nargs="+", default=list(ON_CPU), choices=PEERS, help="its settings (all for a CPU)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (benchmarks/results)")
    return parser.parse_args()


def make_model(folder: Path, shape: dict[str, Any]) -> None:
    """The model with random weights (seed 1), saved in bf16 as published ones are, with a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.models.load import load_tokenizer
    from tunesmith.recipe import ModelSettings

    tokenizer = load_tokenizer(ModelSettings(name="tunesmith/base"))
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    rest = {
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    }
    torch.manual_seed(1)
    config = LlamaConfig(**shape, **rest, **special, dtype="bfloat16")
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM._from_config(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_sides(options: argparse.Namespace, method: str, folder: Path, num_rows: int) -> list[Side]:
    """Ours first, then the peer's settings; in full training only those with fp32 master weights."""
    task = {
        "rows": str(folder / "rows.json"),
        "scratch": str(folder / "scratch"),
        "model": str(folder / "model"),
        "method": method,
        "warmup_steps": WARMUP_STEPS,
        "num_steps": num_rows // options.rows_per_step,
        "rows_per_step": options.rows_per_step,
    }
    names = [name for name in options.peers if method == "lora" or name in MASTER_WEIGHTS]
    return [
        Side("Tunesmith, its defaults", "train_speed_ours.py", sys.executable, task, method),
        *(
            Side(f"TRL, {name}", "train_speed_trl.py", options.peer_python, {**task, "config": PEERS[name]}, method)
            for name in names
        ),
    ]


def compare(benchmark: str, method: str, sides: list[Side]) -> list[dict[str, Any]]:
    """Ours against the peer at its defaults and against the best of its settings, and the share of the machine."""
    ours, *peers = sides
    best = best_of(peers)
    default = next((one for one in peers if one.title.endswith(DEFAULTS)), best)
    peak = ours.median("matrix_flops_per_second")
    achieved = ours.median("model_flops") / ours.median("seconds")
    return [
        speed_line(f"{benchmark}/{method}/trl_batch_8", ours, default),
        speed_line(f"{benchmark}/{method}/trl_best", ours, best),
        memory_line(f"{benchmark}/{method}/memory_trl_batch_8", ours, default),
        memory_line(f"{benchmark}/{method}/memory_trl_best", ours, best),
        comparison(
            f"{benchmark}/{method}/share_of_peak",
            achieved / 1e12,
            peak / 1e12,
            achieved / peak,
            ours,
            f"TFLOP/s of the model against those of the machine's own {ours.rounds[0]['precision']} matrix product, "
            "in the same process",
        ),
    ]


def report(groups: dict[str, list[Side]], size: dict[str, float], where_from: str, options: argparse.Namespace) -> str:
    """The results as a Markdown page."""
    lines = [
        "# Training speed against TRL's SFTTrainer",
        "",
        machine(options.threads),
        f"Llama of {options.shape}'s shape, random weights; {size['rows']} rows of {where_from}; tokens "
        f"per row: median {size['median']}, mean {size['mean']}, longest {size['longest']}; {size['labels']:.0%} are "
        f"learnt. About {options.rows_per_step} rows per optimiser step on both sides; LoRA of rank 16 on all "
        f"matrices; full training with fp32 master weights on both sides. Median of {options.rounds} rounds. `ratio` "
        f"is Tunesmith's tokens/s over this line's. Share of peak: FLOPs that the model needs (attention causal, head "
        f"at labels only) over what the machine's matrix product does in the same process, in the precision that "
        f"Tunesmith chose.",
    ]
    for method, sides in groups.items():
        ours = sides[0]
        achieved = ours.median("model_flops") / ours.median("seconds")
        peak = ours.median("matrix_flops_per_second")
        lines += [
            "",
            f"## {method}",
            "",
            f"Tunesmith: {achieved / 1e12:.3f} of {peak / 1e12:.3f} TFLOP/s, {achieved / peak:.0%} of the peak.",
            "",
            "| | tokens/s | learnt tokens/s | peak memory | ratio |",
            "|---|--:|--:|--:|--:|",
        ]
        for side in sides:
            learnt = side.median("num_labels") / side.median("seconds")
            ratio = ours.tokens_per_second / side.tokens_per_second
            lines.append(
                f"| {name_of(side)} | {side.tokens_per_second:,.0f} | {learnt:,.0f} "
                f"| {side.peak_bytes / 2**30:.2f} GiB | {ratio:.2f} |"
            )
    return "\n".join(lines) + "\n"


def name_of(side: Side) -> str:
    """Program, version and setting."""
    first = side.rounds[0]
    program, _, setting = side.title.partition(", ")
    version = first["versions"][program.lower()]
    name = f"{program} {version}, {setting}"
    return f"**{name}** ({'; '.join(first['chosen'])})" if "chosen" in first else name


if __name__ == "__main__":
    main()

"""Full training of an encoder on ragged rows: Tunesmith against transformers' Trainer, in one run.

DistilBERT's shape with random weights and two classes; rows of 24 to 384 tokens, 32 to a step. Beside tokens of rows
per second stands what Intel published for this shape, derived: 1,360 padded tokens/s (32 rows of 384 tokens) on 2 of
the cores it used.

    make bench                                             with the others
    python benchmarks/encoder_speed.py --rounds 1 --rows 160    a quick look
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import RESULTS, Side, best_of, comparison, keep, machine, memory_line, run_rounds, speed_line
from train_speed_rows import lengths, read_pairs

ROWS_PER_STEP = 32
WARMUP_STEPS = 1
MAX_TOKENS = 384
PUBLISHED = 1360
"""Padded tokens/s on two cores, derived from a published run on 32."""
SHAPE = {"dim": 768, "hidden_dim": 3072, "n_layers": 6, "n_heads": 12, "max_position_embeddings": 512}
PEERS: dict[str, dict[str, Any]] = {
    "its defaults": {},
    "bf16": {"bf16": True},
    "bf16, rows of like length": {"bf16": True, "train_sampling_strategy": "group_by_length"},
    "fp32, rows of like length": {"train_sampling_strategy": "group_by_length"},
}


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_model(folder / "model")
        rows, where_from = make_rows(options.rows, folder / "rows.json")
        task = {
            "rows": str(folder / "rows.json"),
            "scratch": str(folder / "scratch"),
            "model": str(folder / "model"),
            "method": "full",
            "objective": "classification",
            "labels": ["first", "second"],
            "warmup_steps": WARMUP_STEPS,
            "rows_per_step": ROWS_PER_STEP,
            "num_steps": len(rows) // ROWS_PER_STEP,
            "padding": {},
        }
        sides = [Side("Tunesmith, its defaults", "train_speed_ours.py", sys.executable, task)]
        for name in options.peers:
            sides.append(
                Side(f"Trainer, {name}", "encoder_speed_trainer.py", sys.executable, {**task, "config": PEERS[name]})
            )
        run_rounds(sides, options.rounds, options.threads)
    ours, *peers = sides
    padded = ours.median("num_rows") / ours.median("seconds") * MAX_TOKENS
    published = Side("Intel, published for 32 cores, derived for 2", "", "", {})
    keep(
        options.out,
        "encoder_speed",
        comparisons=[
            speed_line("encoder_speed/full/trainer", ours, peers[0]),
            speed_line("encoder_speed/full/trainer_best", ours, best_of(peers)),
            memory_line("encoder_speed/full/memory_trainer", ours, peers[0]),
            comparison(
                "encoder_speed/full/published",
                padded,
                PUBLISHED,
                padded / PUBLISHED,
                published,
                f"tokens/s with every row counted as {MAX_TOKENS}",
            ),
        ],
        raw={"machine": machine(options.threads), "rows": lengths(rows), "measured": [one.kept() for one in sides]},
        page=report(sides, lengths(rows), where_from, options),
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=320, help="rows of the one epoch that is measured (320)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side (all cores)")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, help="the peer's settings (all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (benchmarks/results)")
    return parser.parse_args()


def make_model(folder: Path) -> None:
    """DistilBERT's shape with random weights, and a tokenizer of ours."""
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    from tunesmith.models.load import load_tokenizer
    from tunesmith.recipe import ModelSettings

    tokenizer = load_tokenizer(ModelSettings(name="tunesmith/base"))
    torch.manual_seed(1)
    config = DistilBertConfig(**SHAPE, vocab_size=30_522, pad_token_id=tokenizer.pad_token_id, num_labels=2)
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(num_rows: int, path: Path) -> tuple[list[dict[str, Any]], str]:
    """Rows as token ids with a class each, of log-normal length (median 150 tokens, sigma 0.6)."""
    from tunesmith.models.load import load_tokenizer
    from tunesmith.recipe import ModelSettings

    tokenizer = load_tokenizer(ModelSettings(name="tunesmith/base"))
    pairs, where_from = read_pairs()
    ids = [token for pair in pairs for token in tokenizer("\n".join(pair), add_special_tokens=False)["input_ids"]]
    chance = random.Random(3)
    rows = []
    for _ in range(num_rows):
        length = min(MAX_TOKENS, max(24, round(chance.lognormvariate(5.0, 0.6))))
        start = chance.randrange(len(ids) - length)
        rows.append({"input_ids": ids[start : start + length], "labels": [chance.randrange(2)]})
    path.write_text(json.dumps(rows), encoding="utf-8")
    return rows, f"{where_from}, cut at log-normal lengths"


def report(sides: list[Side], size: dict[str, float], where_from: str, options: argparse.Namespace) -> str:
    """The results as a Markdown page."""
    ours = sides[0]
    lines = [
        "# Full training of an encoder, against transformers' Trainer",
        "",
        machine(options.threads),
        f"DistilBERT's shape, random weights, 2 classes; {size['rows']} rows of {where_from}; tokens per row: median "
        f"{size['median']}, mean {size['mean']}, longest {size['longest']}; {ROWS_PER_STEP} rows a step. Median of "
        f"{options.rounds} rounds. `ratio` is Tunesmith's tokens/s over this line's. Padded tokens/s counts every row "
        f"as {MAX_TOKENS}; {PUBLISHED:,} are derived from Intel's published run on 32 cores.",
        "",
        "| | tokens/s | padded tokens/s | peak memory | ratio |",
        "|---|--:|--:|--:|--:|",
    ]
    for side in sides:
        padded = side.median("num_rows") / side.median("seconds") * MAX_TOKENS
        chosen = f" ({'; '.join(side.rounds[0]['chosen'])})" if side is ours else ""
        lines.append(
            f"| {side.title}{chosen} | {side.tokens_per_second:,.0f} | {padded:,.0f} "
            f"| {side.peak_bytes / 2**30:.2f} GiB | {ours.tokens_per_second / side.tokens_per_second:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

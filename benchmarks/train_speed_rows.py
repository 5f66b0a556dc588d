"""The rows of the training benchmark: ragged chats from public text, encoded once for both sides."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
MAX_TOKENS = 1024
IGNORED = -100


def make_rows(num_rows: int, path: Path, *, row_tokens: int = 0) -> tuple[list[dict[str, Any]], str]:
    """Chat rows as token ids and labels, the same for both sides, and where their text comes from.

    With `row_tokens` every row is so long: chats one after the other, cut.
    """
    from tunesmith.core.records import Message
    from tunesmith.data.template import encode_chat
    from tunesmith.models.load import load_tokenizer
    from tunesmith.recipe import ModelSettings

    tokenizer = load_tokenizer(ModelSettings(name="tunesmith/base"))
    pairs, where_from = read_pairs()
    random.Random(1).shuffle(pairs)
    rows: list[dict[str, Any]] = []
    for question, answer in itertools.cycle(pairs):
        messages = (Message("user", question), Message("assistant", answer))
        chat = encode_chat(tokenizer, messages, max_length=MAX_TOKENS)
        ids = list(chat.input_ids)
        labels = [i if is_trained else IGNORED for i, is_trained in zip(ids, chat.is_trained, strict=True)]
        if rows and len(rows[-1]["input_ids"]) < row_tokens:
            rows[-1]["input_ids"] = (rows[-1]["input_ids"] + ids)[:row_tokens]
            rows[-1]["labels"] = (rows[-1]["labels"] + labels)[:row_tokens]
        elif len(rows) == num_rows:
            break
        else:
            rows.append({"input_ids": ids, "labels": labels})
    path.write_text(json.dumps(rows), encoding="utf-8")
    return rows, where_from


def read_pairs() -> tuple[list[tuple[str, str]], str]:
    """Questions and answers: worked arithmetic and short instructions, 2 to 1, or text from the built-in manual."""
    sums, orders = SHARED / "gsm8k" / "train.jsonl", SHARED / "instruct-and-preference" / "instruction-data.json"
    if sums.is_file() and orders.is_file():
        lines = [json.loads(line) for line in sums.read_text(encoding="utf-8").splitlines()[:2000]]
        pairs = [(line["question"], line["answer"]) for line in lines]
        for row in json.loads(orders.read_text(encoding="utf-8"))[:1000]:
            pairs.append((f"{row['instruction']}\n{row['input']}".strip(), row["output"]))
        return pairs, "GSM8K (MIT) and short instructions (Apache-2.0), 2 to 1"
    pages = ROOT / "src" / "tunesmith" / "assets" / "manual" / "pages"
    words = " ".join(page.read_text(encoding="utf-8") for page in sorted(pages.glob("*.md"))).split()
    chance = random.Random(2)
    pairs = []
    for _ in range(3000):
        start, length = chance.randrange(len(words) // 2), max(12, round(chance.lognormvariate(4.6, 0.6)))
        piece = words[start : start + length]
        pairs.append((" ".join(piece[: length // 2]), " ".join(piece[length // 2 :])))
    return pairs, "the built-in manual, cut at log-normal lengths (median 100 words, sigma 0.6)"


def lengths(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How long the rows are, in tokens."""
    sizes = [len(row["input_ids"]) for row in rows]
    num_labels = sum(label != IGNORED for row in rows for label in row["labels"])
    return {
        "rows": len(rows),
        "median": round(statistics.median(sizes)),
        "mean": round(statistics.mean(sizes)),
        "longest": max(sizes),
        "labels": num_labels / sum(sizes),
    }

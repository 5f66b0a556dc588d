"""Count the tokens of rows, and find those of which too little is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Emit, Progress
from tunesmith.core.records import Example, TextExample
from tunesmith.data.findings import Findings
from tunesmith.data.learnt import Learnt, learn
from tunesmith.data.write import row_of
from tunesmith.steps.data_report import Lengths

MEASURED_ROWS = 5000
"""Rows whose tokens are counted in a larger file; every row that could be too long is counted besides."""
BINS = 12
STEP = "data"


def measure(
    examples: Sequence[Example], tokenizer: Any, max_length: int, context: int, found: Findings, emit: Emit
) -> list[tuple[Example, Learnt]]:
    """What is learnt of each row, or of a sample where they are many; rows that are cut or unfit go into `found`."""
    measured = []
    chosen = _to_measure(examples, max_length)
    for done, example in enumerate(chosen):
        if done % 500 == 0:
            emit(Progress(STEP, done, len(chosen), "tokens", "rows"))
        try:
            one = learn(example, tokenizer, max_length=max_length)
        except UserError as fault:
            found.add("error", fault.code, example.origin, fault.message.rstrip("."), fault.remedy.rstrip("."))
            continue
        measured.append((example, one))
        wanted = -(-one.num_tokens // 64) * 64
        remedy = f"data.max_length={wanted}" if wanted <= context else f"shorten it (the model reads {context:,})"
        if one.num_cut and not one.num_trained:
            message = f"all {one.num_answer:,} answer tokens cut at length {max_length:,}"
            found.add("error", "nothing_trained", example.origin, message, remedy)
        elif one.num_cut:
            message = f"{one.num_cut:,} of {one.num_tokens:,} tokens cut at {max_length:,}"
            found.add("warning", "truncated", example.origin, message, remedy)
    return measured


def summarize_lengths(sizes: Sequence[int]) -> Lengths | None:
    """How the sizes of rows are spread; none where no row was measured."""
    if not sizes:
        return None
    ordered = sorted(sizes)
    longest = ordered[-1]
    bins = [0] * BINS
    for size in ordered:
        bins[min(BINS - 1, size * BINS // max(1, longest))] += 1
    return Lengths(
        p5=_quantile(ordered, 0.05),
        median=round(median(ordered)),
        p95=_quantile(ordered, 0.95),
        longest=longest,
        histogram=tuple(bins),
        num_measured=len(ordered),
    )


def _to_measure(examples: Sequence[Example], max_length: int) -> Sequence[Example]:
    """All rows; of many, an even sample and every row whose bytes could make more than `max_length` tokens."""
    if len(examples) <= MEASURED_ROWS:
        return examples
    every = -(-len(examples) // MEASURED_ROWS)
    return [
        example
        for number, example in enumerate(examples)
        if number % every == 0 or (not isinstance(example, TextExample) and _num_bytes(example) > max_length)
    ]


def _num_bytes(example: Example) -> int:
    """An upper bound of the tokens: none has less than a byte; templates add a few to each message."""
    row = row_of(example)
    return len(str({name: value for name, value in row.items() if name not in example.fields}).encode())


def _quantile(ordered: Sequence[int], share: float) -> int:
    return ordered[round(share * (len(ordered) - 1))]

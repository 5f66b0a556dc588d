"""Examples to token ids, with everything that is cut or left out counted and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Finding
from tunesmith.core.records import Example
from tunesmith.objectives.base import Features, Objective


@dataclass(frozen=True)
class Rows:
    """Encoded rows, their lengths in tokens and, for messages, where each came from."""

    features: tuple[Features, ...]
    lengths: tuple[int, ...]
    origins: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def weight(self) -> float:
        """Learnt tokens, or rows of a classifier."""
        return sum(feature.weight for feature in self.features)


def encode_rows(
    examples: Sequence[Example],
    objective: Objective,
    tokenizer: Any,
    *,
    max_length: int,
    labels: Sequence[str],
) -> tuple[Rows, tuple[Finding, ...]]:
    """The rows that can be trained on, and a finding for each kind of loss.

    Raises:
        UserError: No row has a token that is learnt.
    """
    features: list[Features] = []
    origins: list[str] = []
    cut: list[tuple[str, int]] = []
    empty: list[str] = []
    for example in examples:
        for piece in objective.encode(example, tokenizer, max_length=max_length, labels=labels):
            if piece.num_cut:
                cut.append((str(example.origin), piece.num_cut))
            if piece.weight:
                features.append(piece)
                origins.append(str(example.origin))
            else:
                empty.append(str(example.origin))
    if not features:
        raise UserError(
            f"none of the {len(examples)} rows has a token to learn within {max_length} tokens.",
            code="nothing_trained",
            where=origins[0] if origins else str(examples[0].origin),
            remedy="Raise data.max_length, or look at the rows with `tunesmith data show`.",
        )
    rows = Rows(tuple(features), tuple(feature.num_tokens for feature in features), tuple(origins))
    return rows, _findings(cut, empty, max_length)


def _findings(cut: Sequence[tuple[str, int]], empty: Sequence[str], max_length: int) -> tuple[Finding, ...]:
    findings = []
    if empty:
        text = f"every answer token is cut at {max_length}; left out"
        findings.append(Finding("error", "nothing_trained", empty[0], text, "data.max_length", len(empty)))
    if cut:
        where, num_cut = cut[0]
        text = f"{num_cut} tokens cut at {max_length}"
        findings.append(Finding("warning", "truncated", where, text, "data.max_length", len(cut)))
    return tuple(findings)

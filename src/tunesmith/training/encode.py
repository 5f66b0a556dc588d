"""Examples to token ids, with everything that is cut or left out counted and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
    sources: tuple[str, ...] = ()
    """The name of each row's source; empty where there is one."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The sources' names in order; one empty name where there is one source."""
        return tuple(dict.fromkeys(self.sources)) or ("",)

    def source(self, row: int) -> str:
        """The name of a row's source."""
        return self.sources[row] if self.sources else ""

    def rows_of(self, name: str) -> tuple[int, ...]:
        """The numbers of a source's rows."""
        return tuple(row for row in range(len(self.features)) if self.source(row) == name)

    @staticmethod
    def joined(parts: Mapping[str, Rows]) -> Rows:
        """The rows of several tasks one after the other, each under its task's name."""
        return Rows(
            tuple(feature for part in parts.values() for feature in part.features),
            tuple(length for part in parts.values() for length in part.lengths),
            tuple(origin for part in parts.values() for origin in part.origins),
            tuple(name for name, part in parts.items() for _ in part.features),
        )

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
    sources: list[str] = []
    cut: list[tuple[str, int]] = []
    empty: list[str] = []
    for example in examples:
        for piece in objective.encode(example, tokenizer, max_length=max_length, labels=labels):
            if piece.num_cut:
                cut.append((str(example.origin), piece.num_cut))
            if piece.weight:
                features.append(piece)
                origins.append(str(example.origin))
                sources.append(example.source_name)
            else:
                empty.append(str(example.origin))
    if not features:
        raise UserError(
            f"none of the {len(examples)} rows has a token to learn within {max_length} tokens.",
            code="nothing_trained",
            where=origins[0] if origins else str(examples[0].origin),
            remedy="Raise data.max_length, or look at the rows with `tunesmith data show`.",
        )
    named = tuple(sources) if any(sources) else ()
    rows = Rows(tuple(features), tuple(feature.num_tokens for feature in features), tuple(origins), named)
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

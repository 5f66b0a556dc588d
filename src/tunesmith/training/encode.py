"""Examples to token ids, with everything that is cut or left out counted and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import UserError
from tunesmith.core.events import Finding
from tunesmith.core.records import Example, Origin
from tunesmith.objectives.base import Features, Objective
from tunesmith.training.token_store import Chunk, Loss, StoredFeatures, make_chunk


@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded rows, in memory or in mapped files, with their sizes and, for messages, where each came from."""

    features: Sequence[Features]
    lengths: NDArray[Any]
    """Tokens of each row, [N]."""
    weights: NDArray[Any]
    """What each row adds to its step's weight, [N]: learnt tokens, or 1 for a classifier."""
    origins: Sequence[str]
    names: tuple[str, ...] = ("",)
    """The sources' names, in order; one empty name where there is one source."""
    source_of: NDArray[Any] | None = None
    """The number of each row's source among `names`, [N]; None where there is one."""

    @staticmethod
    def of(features: Sequence[Features], origins: Sequence[str], sources: Sequence[str] = ()) -> Rows:
        """Rows in memory; `sources` names each row's source, where there are several."""
        lengths = np.asarray([feature.num_tokens for feature in features], dtype=np.int32)
        weights = np.asarray([feature.weight for feature in features], dtype=np.float64)
        names = tuple(dict.fromkeys(sources)) or ("",)
        numbers = {name: number for number, name in enumerate(names)}
        source_of = np.asarray([numbers[name] for name in sources], dtype=np.int32) if sources else None
        return Rows(tuple(features), lengths, weights, tuple(origins), names, source_of)

    def __len__(self) -> int:
        return len(self.lengths)

    def source(self, row: int) -> str:
        """The name of a row's source."""
        return self.names[0] if self.source_of is None else self.names[int(self.source_of[row])]

    def rows_of(self, name: str) -> NDArray[np.int64]:
        """The numbers of a source's rows."""
        number = self.names.index(name)
        return np.arange(len(self)) if self.source_of is None else np.flatnonzero(self.source_of == number)

    def first(self, count: int) -> Rows:
        """The first so many rows."""
        part = slice(0, count)
        source_of = None if self.source_of is None else self.source_of[part]
        return replace(
            self,
            features=self.features[part],
            lengths=self.lengths[part],
            weights=self.weights[part],
            origins=self.origins[part],
            source_of=source_of,
        )

    def will_need(self, rows: Callable[[], Sequence[int]]) -> None:
        """Have rows that are mapped read from disk in the background; in memory they are not even asked for."""
        if isinstance(self.features, StoredFeatures):
            self.features.will_need(rows())

    @staticmethod
    def joined(parts: Mapping[str, Rows]) -> Rows:
        """The rows of several tasks one after the other, each under its task's name."""
        rows = list(parts.values())
        return Rows(
            Joined([part.features for part in rows]),
            np.concatenate([part.lengths for part in rows]),
            np.concatenate([part.weights for part in rows]),
            Joined([part.origins for part in rows]),
            tuple(parts),
            np.repeat(np.arange(len(rows), dtype=np.int32), [len(part) for part in rows]),
        )

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def weight(self) -> float:
        """Learnt tokens, or rows of a classifier."""
        return float(self.weights.sum())


class Joined(Sequence[Any]):
    """Sequences one after the other, without copies of what they hold."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._parts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(self[number] for number in range(*place.indices(len(self))))
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(place)
        part = int(np.searchsorted(self._ends, number, side="right"))
        return self._parts[part][number - (int(self._ends[part - 1]) if part else 0)]


@dataclass(frozen=True)
class Encoding:
    """How examples become rows."""

    objective: Objective
    tokenizer: Any
    max_length: int
    labels: tuple[str, ...] = ()

    def pieces(self, example: Example) -> tuple[Features, ...]:
        """The rows of an example, those without a learnt token among them."""
        return self.objective.encode(example, self.tokenizer, max_length=self.max_length, labels=self.labels)

    def rows(self, examples: Sequence[Example]) -> tuple[list[tuple[Features, Origin, str]], Loss, Loss]:
        """The rows that can be trained on, each with its origin and source; what was cut; what was left out."""
        rows: list[tuple[Features, Origin, str]] = []
        cut, empty = Loss(), Loss()
        for example in examples:
            for piece in self.pieces(example):
                if piece.num_cut:
                    cut.add(Loss(str(example.origin), piece.num_cut, 1))
                if piece.weight:
                    rows.append((piece, example.origin, example.source_name))
                else:
                    empty.add(Loss(str(example.origin), 0, 1))
        return rows, cut, empty

    def chunk(self, examples: Sequence[Example]) -> Chunk:
        """The rows that can be trained on, as arrays, and what was lost on the way."""
        rows, cut, empty = self.rows(examples)
        return make_chunk(rows, len(examples), cut, empty)


def encode_rows(
    examples: Sequence[Example],
    objective: Objective,
    tokenizer: Any,
    *,
    max_length: int,
    labels: Sequence[str],
) -> tuple[Rows, tuple[Finding, ...]]:
    """The rows that can be trained on, in memory, and a finding for each kind of loss.

    Raises:
        UserError: No row has a token that is learnt.
    """
    rows, cut, empty = Encoding(objective, tokenizer, max_length, tuple(labels)).rows(examples)
    if not rows:
        raise nothing_trained(len(examples), str(examples[0].origin), max_length)
    features, origins, sources = zip(*rows, strict=True)
    named = sources if any(sources) else ()
    return Rows.of(features, [str(origin) for origin in origins], named), findings_of(cut, empty, max_length)


def nothing_trained(num_examples: int, where: str, max_length: int) -> UserError:
    """The error for rows of which none has a token to learn."""
    return UserError(
        f"none of the {num_examples} rows has a token to learn within {max_length} tokens.",
        code="nothing_trained",
        where=where,
        remedy="Raise data.max_length, or look at the rows with `tunesmith data show`.",
    )


def findings_of(cut: Loss, empty: Loss, max_length: int) -> tuple[Finding, ...]:
    """What was cut and left out, one finding for each kind."""
    findings = []
    if empty.num_rows:
        text = f"every answer token is cut at {max_length}; left out"
        findings.append(Finding("error", "nothing_trained", empty.where, text, "data.max_length", empty.num_rows))
    if cut.num_rows:
        text = f"{cut.num_tokens} tokens cut at {max_length}"
        findings.append(Finding("warning", "truncated", cut.where, text, "data.max_length", cut.num_rows))
    return tuple(findings)

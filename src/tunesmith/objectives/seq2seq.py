"""Turn a source text into a target text with an encoder-decoder (T5, BART)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tunesmith.core.records import ChatExample, Example, PairExample
from tunesmith.data.features import pair_features
from tunesmith.objectives.base import Batch, Features, Layout, Task, TokenObjective, seq2seq_batch


class Seq2Seq(TokenObjective):
    """-sum log p(y_t | x, y_<t) over the target's tokens and its end."""

    task: ClassVar[Task] = "seq2seq"
    accepts: ClassVar[tuple[type[Example], ...]] = (PairExample, ChatExample)

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        return (pair_features(example, tokenizer, max_length=max_length),)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        return seq2seq_batch(features, layout)

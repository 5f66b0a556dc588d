"""Continue plain text: every token is learnt (continued pre-training)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tunesmith.core.records import Example, TextExample
from tunesmith.data.features import text_features
from tunesmith.objectives.base import Batch, Features, Layout, Task, TokenObjective, causal_batch


class CLM(TokenObjective):
    """Next-token prediction, -sum log p(x_t | x_<t), over whole texts.

    Texts longer than the limit go on in the next piece, which begins with one token of context.
    """

    task: ClassVar[Task] = "causal"
    accepts: ClassVar[tuple[type[Example], ...]] = (TextExample,)

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        assert isinstance(example, TextExample), type(example)
        return text_features(example.text, tokenizer, max_length=max_length)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        return causal_batch(features, layout)

"""Learn the assistant's answers in conversations (supervised and instruction fine-tuning)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from tunesmith.core.records import ChatExample, Example
from tunesmith.data.features import chat_features
from tunesmith.objectives.base import Batch, Features, Layout, Task, TokenObjective, causal_batch


class SFT(TokenObjective):
    """-sum log p(y_t | x, y_<t) over the assistant's tokens, its end of turn included; the rest is context."""

    task: ClassVar[Task] = "causal"
    accepts: ClassVar[tuple[type[Example], ...]] = (ChatExample,)

    train_on: Literal["assistant", "all"] = "assistant"
    """Which tokens are learnt: the assistant's turns, or the whole conversation."""

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        assert isinstance(example, ChatExample), type(example)
        scores_all = self.train_on == "all"
        return (chat_features(example, tokenizer, max_length=max_length, scores_all=scores_all),)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        return causal_batch(features, layout)

"""Continue plain text: every token is learnt (continued pre-training)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.records import Example, TextExample
from tunesmith.objectives.base import IGNORED, Batch, Features, Layout, Learner, Metrics, Objective, Task, causal_batch

if TYPE_CHECKING:
    from torch import Tensor


class CLM(Objective):
    """Next-token prediction, -sum log p(x_t | x_<t), over whole texts.

    Texts longer than the limit go on in the next piece, which begins with one token of context.
    """

    task: ClassVar[Task] = "causal"
    accepts: ClassVar[tuple[type[Example], ...]] = (TextExample,)

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        assert isinstance(example, TextExample), type(example)
        ids = tokenizer(example.text, add_special_tokens=False, verbose=False)["input_ids"]
        if tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id, *ids]
        if tokenizer.eos_token_id is not None:
            ids = [*ids, tokenizer.eos_token_id]
        starts = range(0, max(1, len(ids) - 1), max_length - 1)
        return tuple(_piece(ids[start : start + max_length]) for start in starts)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        return causal_batch(features, layout)

    def loss(self, learner: Learner, batch: Batch) -> tuple[Tensor, Metrics]:
        return learner.token_losses(batch).sum(), {}


def _piece(ids: Sequence[int]) -> Features:
    return Features(tuple(ids), (IGNORED, *ids[1:]), float(len(ids) - 1))

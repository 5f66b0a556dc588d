"""Give a number for a text or a pair of texts: similarity, a rating, a price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.records import Example, NumberExample
from tunesmith.data.features import head_features
from tunesmith.objectives.base import (
    Batch,
    Features,
    Layout,
    Learner,
    Metrics,
    Objective,
    Problem,
    Task,
    encoder_batch,
    head_logits,
)

if TYPE_CHECKING:
    from torch import Tensor


class Regression(Objective):
    """Squared error, sum (f(text) - y)^2, with one output on the model's pooled state. Numbers stay in their unit."""

    task: ClassVar[Task] = "classify"
    problem: ClassVar[Problem] = "regression"
    accepts: ClassVar[tuple[type[Example], ...]] = (NumberExample,)
    loss_unit: ClassVar[str] = "mean squared error"

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        assert isinstance(example, NumberExample), type(example)
        return (head_features(example, tokenizer, max_length=max_length, value=example.value),)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        import torch

        return encoder_batch(features, layout, torch.tensor([feature.value for feature in features]))

    def loss(self, learner: Learner, batch: Batch) -> tuple[Tensor, Metrics]:
        import torch.nn.functional as F

        found_B = head_logits(learner, batch).squeeze(-1)
        return F.mse_loss(found_B, batch.tensors["labels"], reduction="sum"), {}

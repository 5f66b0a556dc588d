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
    """Squared error, sum (f(text) - y)^2, with one output on the model's pooled state, in the data's unit."""

    task: ClassVar[Task] = "classify"
    problem: ClassVar[Problem] = "regression"
    accepts: ClassVar[tuple[type[Example], ...]] = (NumberExample,)
    loss_unit: ClassVar[str] = "mean squared error"

    standardize: bool = True
    """Learn in units of the training rows' spread, from their mean on: learning rates then fit any unit of the data."""

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        assert isinstance(example, NumberExample), type(example)
        return (head_features(example, tokenizer, max_length=max_length, value=example.value),)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        import torch

        return encoder_batch(features, layout, torch.tensor([feature.value for feature in features]))

    def unit(self, features: Sequence[Features]) -> tuple[float, float] | None:
        if not self.standardize:
            return None
        import numpy as np

        values = np.fromiter((feature.value for feature in features), np.float64, len(features))
        return float(values.mean()), float(values.std()) or 1.0

    def loss(self, learner: Learner, batch: Batch) -> tuple[Tensor, Metrics]:
        """The value is in the data's unit, squared; its gradient is that of the loss in units of the spread."""
        from tunesmith.models.number_head import spread_of

        found_B = head_logits(learner, batch).squeeze(-1)
        spread = spread_of(learner.model)
        loss = ((found_B - batch.tensors["labels"]) / spread).square().sum()
        return loss + loss.detach() * (spread**2 - 1), {}

"""Choose one class for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.records import Example, LabelExample
from tunesmith.data.features import head_features
from tunesmith.data.labels import label_index
from tunesmith.objectives.base import (
    Batch,
    Features,
    Layout,
    Learner,
    Metrics,
    Objective,
    Task,
    encoder_batch,
    head_logits,
)

if TYPE_CHECKING:
    from torch import Tensor


class Classification(Objective):
    """Cross-entropy over classes, -sum log p(label | text), with a head on the model's pooled state."""

    task: ClassVar[Task] = "classify"
    accepts: ClassVar[tuple[type[Example], ...]] = (LabelExample,)
    loss_unit: ClassVar[str] = "nats per row"

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        assert isinstance(example, LabelExample), type(example)
        index = label_index(example.label, labels, example.origin)
        return (head_features(example, tokenizer, max_length=max_length, labels=(index,)),)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        import torch

        return encoder_batch(features, layout, torch.tensor([feature.labels[0] for feature in features]))

    def loss(self, learner: Learner, batch: Batch) -> tuple[Tensor, Metrics]:
        import torch.nn.functional as F

        logits = head_logits(learner, batch)
        labels = batch.tensors["labels"]
        correct = (logits.argmax(-1) == labels).sum().item()
        return F.cross_entropy(logits, labels, reduction="sum"), {"correct": float(correct)}

"""Choose any number of classes for a text or a pair of texts: each class is a yes or a no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.records import Example, MultiLabelExample
from tunesmith.data.features import head_features
from tunesmith.data.labels import label_index
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


class MultiLabel(Objective):
    """Binary cross-entropy with a sigmoid for each class, -sum_rows mean_c log p(y_c | text).

    The mean over classes is transformers' own (`multi_label_classification`), so that its learning rates fit. A class
    is given where its probability is above one half.
    """

    task: ClassVar[Task] = "classify"
    problem: ClassVar[Problem] = "multi_label_classification"
    accepts: ClassVar[tuple[type[Example], ...]] = (MultiLabelExample,)
    loss_unit: ClassVar[str] = "nats per class of a row"

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        assert isinstance(example, MultiLabelExample), type(example)
        given = {label_index(label, labels, example.origin) for label in example.labels}
        marks = tuple(int(index in given) for index in range(len(labels)))
        return (head_features(example, tokenizer, max_length=max_length, labels=marks),)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        import torch

        marks_BC = torch.tensor([feature.labels for feature in features], dtype=torch.float32)
        return encoder_batch(features, layout, marks_BC)

    def loss(self, learner: Learner, batch: Batch) -> tuple[Tensor, Metrics]:
        import torch.nn.functional as F

        logits_BC = head_logits(learner, batch)
        marks_BC = batch.tensors["labels"]
        correct = ((logits_BC > 0) == (marks_BC > 0)).all(-1).sum().item()
        loss = F.binary_cross_entropy_with_logits(logits_BC, marks_BC, reduction="none").mean(-1).sum()
        return loss, {"correct": float(correct)}

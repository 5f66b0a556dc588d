"""Choose one class for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.errors import UserError
from tunesmith.core.records import Example, LabelExample
from tunesmith.objectives.base import Batch, Features, Layout, Learner, Metrics, Objective, Task, padded

if TYPE_CHECKING:
    from torch import Tensor


class Classification(Objective):
    """Cross-entropy over classes, -sum log p(label | text), with a head on the model's pooled state."""

    task: ClassVar[Task] = "classify"
    accepts: ClassVar[tuple[type[Example], ...]] = (LabelExample,)

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        assert isinstance(example, LabelExample), type(example)
        if example.label not in labels:
            raise UserError(
                f'the label "{example.label}" is not among the {len(labels)} trained ones.',
                code="unknown_label",
                where=str(example.origin),
                remedy="Correct it, or add training rows with this label.",
            )
        encoded = tokenizer(
            example.text, example.text_pair or None, truncation=True, max_length=max_length, verbose=False
        )
        ids = tuple(encoded["input_ids"])
        num_cut = 0
        if len(ids) == max_length:
            num_cut = len(tokenizer(example.text, example.text_pair or None, verbose=False)["input_ids"]) - max_length
        segments = tuple(encoded.get("token_type_ids", ()))
        return (Features(ids, (labels.index(example.label),), 1.0, segments, num_cut=num_cut),)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        import torch

        tensors = {
            "input_ids": padded([feature.input_ids for feature in features], layout.pad_token_id),
            "attention_mask": padded([(1,) * len(feature.input_ids) for feature in features], 0),
            "labels": torch.tensor([feature.labels[0] for feature in features]),
        }
        if features[0].token_type_ids:
            tensors["token_type_ids"] = padded([feature.token_type_ids for feature in features], 0)
        return Batch(tensors, sum(feature.weight for feature in features))

    def loss(self, learner: Learner, batch: Batch) -> tuple[Tensor, Metrics]:
        import torch.nn.functional as F

        inputs = {name: tensor for name, tensor in batch.tensors.items() if name != "labels"}
        logits = learner.model(**inputs).logits.float()
        labels = batch.tensors["labels"]
        correct = (logits.argmax(-1) == labels).sum().item()
        return F.cross_entropy(logits, labels, reduction="sum"), {"correct": float(correct)}

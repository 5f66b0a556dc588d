"""Give each word of a text a tag: names of people and places, parts of speech."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.records import Example, TagExample
from tunesmith.data.labels import label_index
from tunesmith.data.tagging import tag_pieces
from tunesmith.objectives.base import (
    IGNORED,
    Batch,
    Features,
    Layout,
    Learner,
    Metrics,
    Objective,
    Task,
    encoder_batch,
    head_logits,
    padded,
)

if TYPE_CHECKING:
    from torch import Tensor


class TokenClassification(Objective):
    """Cross-entropy over tags at the first token of each word (arXiv:1810.04805, section 5.3); the rest is context.

    A text too long for the model goes on in further pieces, cut between words.
    """

    task: ClassVar[Task] = "tag"
    accepts: ClassVar[tuple[type[Example], ...]] = (TagExample,)
    loss_unit: ClassVar[str] = "nats per word"

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        assert isinstance(example, TagExample), type(example)
        classes = [label_index(tag, labels, example.origin) for tag in example.tags]
        features = []
        for piece in tag_pieces(example.words, tokenizer, max_length=max_length):
            marks = [IGNORED] * len(piece.input_ids)
            for word, start in enumerate(piece.starts, piece.first_word):
                if start >= 0:
                    marks[start] = classes[word]
            weight = float(sum(mark != IGNORED for mark in marks))
            features.append(Features(piece.input_ids, tuple(marks), weight, piece.token_type_ids, piece.num_cut))
        return tuple(features)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        return encoder_batch(features, layout, padded([feature.labels for feature in features], IGNORED))

    def loss(self, learner: Learner, batch: Batch) -> tuple[Tensor, Metrics]:
        import torch.nn.functional as F

        labels_BT = batch.tensors["labels"]
        logits_BTC = head_logits(learner, batch)[:, -labels_BT.shape[1] :]  # virtual tokens come first
        correct = (logits_BTC.argmax(-1) == labels_BT).sum().item()
        loss = F.cross_entropy(logits_BTC.flatten(0, 1), labels_BT.flatten(), reduction="sum", ignore_index=IGNORED)
        return loss, {"correct": float(correct)}

"""Turn a source text into a target text with an encoder-decoder (T5, BART)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.core.records import ChatExample, Example, PairExample
from tunesmith.objectives.base import IGNORED, Batch, Features, Layout, Learner, Metrics, Objective, Task, padded

if TYPE_CHECKING:
    from torch import Tensor


class Seq2Seq(Objective):
    """-sum log p(y_t | x, y_<t) over the target's tokens and its end."""

    task: ClassVar[Task] = "seq2seq"
    accepts: ClassVar[tuple[type[Example], ...]] = (PairExample, ChatExample)

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        source, target = source_and_target(example)
        source_ids = tokenizer(source, verbose=False)["input_ids"]
        whole_target = _with_end(tokenizer(text_target=target, verbose=False)["input_ids"], tokenizer.eos_token_id)
        num_cut = max(0, len(source_ids) - max_length) + max(0, len(whole_target) - max_length)
        target_ids = tuple(whole_target[:max_length])
        piece = Features(
            tuple(source_ids[:max_length]), target_ids, float(len(target_ids)), num_cut=num_cut, target_ids=target_ids
        )
        return (piece,)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        decoder_inputs = [(layout.decoder_start_token_id, *feature.target_ids[:-1]) for feature in features]
        tensors = {
            "input_ids": padded([feature.input_ids for feature in features], layout.pad_token_id),
            "attention_mask": padded([(1,) * len(feature.input_ids) for feature in features], 0),
            "decoder_input_ids": padded(decoder_inputs, layout.pad_token_id),
            "decoder_attention_mask": padded([(1,) * len(ids) for ids in decoder_inputs], 0),
            "labels": padded([feature.labels for feature in features], IGNORED),
        }
        return Batch(tensors, sum(feature.weight for feature in features))

    def loss(self, learner: Learner, batch: Batch) -> tuple[Tensor, Metrics]:
        return learner.token_losses(batch).sum(), {}


def source_and_target(example: Example) -> tuple[str, str]:
    """The two texts of a pair, or of a conversation's last question and answer."""
    if isinstance(example, PairExample):
        return example.source, example.target
    assert isinstance(example, ChatExample), type(example)
    return "\n".join(message.content for message in example.prompt), example.answer


def _with_end(ids: Sequence[int], end: int | None) -> list[int]:
    return list(ids) if end is None or (ids and ids[-1] == end) else [*ids, end]

"""Guess hidden words of plain text: continued pre-training of an encoder (masked language modelling)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.core.records import Example, TextExample
from tunesmith.data.masking import SHARE, hide, masked_features
from tunesmith.objectives.base import (
    IGNORED,
    Batch,
    Features,
    Layout,
    Task,
    TokenObjective,
    encoder_batch,
    padded,
)


class MLM(TokenObjective):
    """-sum log p(x_t | the other words) over the chosen tokens (Devlin et al. 2018, arXiv:1810.04805, section 3.1).

    Of the chosen tokens 80 % are hidden, 10 % replaced by a random one and 10 % left. Training draws anew in every
    step, from the seed, the step and the row alone, so that a resumed run hides the same words; validation always
    hides the same ones. Texts longer than the limit go on in the next piece.
    """

    task: ClassVar[Task] = "mask"
    accepts: ClassVar[tuple[type[Example], ...]] = (TextExample,)
    is_fixed: ClassVar[bool] = False
    loss_unit: ClassVar[str] = "nats per hidden token"

    share: Annotated[float, Field(gt=0, lt=1)] = SHARE
    """Share of the tokens to guess; 0.15 in the paper. arXiv:2202.08005 finds up to 0.4 better for large models."""

    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        assert isinstance(example, TextExample), type(example)
        return masked_features(example.text, tokenizer, max_length=max_length, share=self.share)

    def renew(self, feature: Features, layout: Layout, draw: tuple[int, int, int]) -> Features:
        return hide(feature.whole_ids, layout, draw=draw, share=self.share)

    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        return encoder_batch(features, layout, padded([feature.labels for feature in features], IGNORED))

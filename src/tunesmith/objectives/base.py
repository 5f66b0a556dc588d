"""What an objective is: it encodes examples, puts them into batches, and gives a loss as a SUM.

The loop divides by the batches' weights once per optimiser step, over accumulation and ranks together;
an average of averages would count a short micro-batch as much as a long one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import NonNegativeFloat

from tunesmith.core.errors import UserError
from tunesmith.core.plugins import Plugin, find, names
from tunesmith.core.records import Example

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

IGNORED = -100
"""The label of a position that is not scored (PyTorch's convention)."""
Task = Literal["causal", "seq2seq", "classify", "tag", "mask"]
"""What a model's head gives: the next token, the target's tokens, classes of a row, classes of words, hidden words."""
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
"""What the outputs of a `classify` head mean, in transformers' words."""
Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Features:
    """One encoded example.

    `labels` has the length of `input_ids` (causal, mask: the token itself where it is learnt, else -100; tag: the
    class where a word begins, else -100), or of `target_ids` (seq2seq), or is one class index, or 0 or 1 of each class
    (classify). `weight` is what it adds to the batch's weight.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    weight: float
    token_type_ids: tuple[int, ...] = ()
    num_cut: int = 0
    """Tokens left out because the example was longer than the limit."""

    target_ids: tuple[int, ...] = ()
    """Seq2seq only: what the decoder writes; `labels` scores it."""

    whole_ids: tuple[int, ...] = ()
    """Mask only: `input_ids` before words were hidden."""

    value: float = 0.0
    """Regression only: the number to give."""

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model for this example, the target's included."""
        return len(self.input_ids) + len(self.target_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors for one forward pass. Packed: one row of concatenated examples, `lengths` says where they end."""

    tensors: Mapping[str, Tensor]
    weight: float
    lengths: tuple[int, ...] = ()
    """Packed only: the examples' lengths in tokens, in order; empty when rows are padded instead."""
    origins: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """How features become tensors."""

    is_packed: bool
    pad_token_id: int
    decoder_start_token_id: int = 0
    mask_token_id: int = -1
    num_tokens: int = 0
    """Size of the tokenizer's vocabulary."""
    special_ids: frozenset[int] = frozenset()
    """Tokens that are no text; they are never hidden."""


class Learner(Protocol):
    """What an objective may use of the training."""

    @property
    def model(self) -> Module:
        """The model being trained, under the precision of the run."""

    def token_losses(self, batch: Batch, *, z_loss: float = 0.0) -> Tensor:
        """Negative log-likelihood in nats of every labelled token of the batch, [N].

        `z_loss` adds z_loss log^2 Z of each token to the gradient, not to the values.
        """


class Objective(Plugin):
    """What is optimised."""

    task: ClassVar[Task] = "causal"
    accepts: ClassVar[tuple[type[Example], ...]] = ()
    passes: ClassVar[int] = 1
    """Optimiser passes over one prepared batch (PPO: several)."""
    problem: ClassVar[Problem] = "single_label_classification"
    """What the outputs of a `classify` head mean."""
    is_fixed: ClassVar[bool] = True
    """Whether a row looks the same in every epoch, so that what a frozen part makes of it can be kept."""
    loss_unit: ClassVar[str] = "nats per token"
    """What the loss is, once divided by its weight."""

    @abstractmethod
    def encode(
        self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> tuple[Features, ...]:
        """The example as the model sees it: one piece of at most `max_length` tokens, several where text goes on.

        `labels` are the class names, in order. A piece without a learnt token has weight 0.
        """

    @abstractmethod
    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        """Tensors and weight of one micro-batch."""

    def unit(self, features: Sequence[Features]) -> tuple[float, float] | None:
        """Mean and spread of the numbers of all training rows, in whose units they are learnt; None for the rest."""
        return None

    def renew(self, feature: Features, layout: Layout, draw: tuple[int, int, int]) -> Features:
        """The row as one step sees it. `draw` is (seed, step, row): equal draws give equal features."""
        return feature

    def prepare(self, learner: Learner, batch: Batch) -> Batch:
        """What needs the model before the loss: reference log-probabilities, roll-outs."""
        return batch

    @abstractmethod
    def loss(self, learner: Learner, batch: Batch) -> tuple[Tensor, Metrics]:
        """The SUM of the loss over the batch's weight, and sums of other numbers to log."""


class TokenObjective(Objective):
    """-sum log p over the labelled tokens of a batch: what all objectives share that predict tokens."""

    z_loss: NonNegativeFloat = 0.0
    """Weight of log^2 Z in each token's gradient, Z the softmax's denominator: keeps logits from drifting in long
    full training (PaLM takes 1e-4, arXiv:2204.02311). Losses are reported without it."""

    def loss(self, learner: Learner, batch: Batch) -> tuple[Tensor, Metrics]:
        return learner.token_losses(batch, z_loss=self.z_loss).sum(), {}


def objective_for(kind: type[Example]) -> str:
    """The name of the objective that rows of this kind are for: the first that names it first in `accepts`.

    Raises:
        UserError: No objective trains on such rows.
    """
    for name in names("objectives"):
        accepts: tuple[type[Example], ...] = find("objectives", name).accepts  # type: ignore[attr-defined]
        if accepts[:1] == (kind,):
            return name
    raise UserError(
        f"no objective trains on {kind.__name__.removesuffix('Example').lower()} rows yet.",
        code="objective_unfit",
        remedy="Train on chats, texts, labels or pairs.",
    )


def causal_batch(features: Sequence[Features], layout: Layout) -> Batch:
    """Input ids and labels, [1, T] packed or [B, T] padded on the right, for models that read left to right."""
    import torch

    weight = sum(feature.weight for feature in features)
    if layout.is_packed:
        ids = [token for feature in features for token in feature.input_ids]
        labels = [label for feature in features for label in feature.labels]
        tensors = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
        return Batch(tensors, weight, lengths=tuple(len(feature.input_ids) for feature in features))
    tensors = {
        "input_ids": padded([feature.input_ids for feature in features], layout.pad_token_id),
        "attention_mask": padded([(1,) * len(feature.input_ids) for feature in features], 0),
        "labels": padded([feature.labels for feature in features], IGNORED),
    }
    return Batch(tensors, weight)


def encoder_batch(features: Sequence[Features], layout: Layout, labels: Tensor) -> Batch:
    """Input ids [B, T] padded on the right, for models that end in a head of classes; `labels` as the head needs."""
    tensors = {
        "input_ids": padded([feature.input_ids for feature in features], layout.pad_token_id),
        "attention_mask": padded([(1,) * len(feature.input_ids) for feature in features], 0),
        "labels": labels,
    }
    if features[0].token_type_ids:
        tensors["token_type_ids"] = padded([feature.token_type_ids for feature in features], 0)
    return Batch(tensors, sum(feature.weight for feature in features))


def head_logits(learner: Learner, batch: Batch) -> Tensor:
    """What the head of classes gives for a batch of `encoder_batch`, in fp32."""
    inputs = {name: tensor for name, tensor in batch.tensors.items() if name != "labels"}
    logits: Tensor = learner.model(**inputs).logits.float()
    return logits


def seq2seq_batch(features: Sequence[Features], layout: Layout) -> Batch:
    """Sources and targets, [B, T] padded on the right; the decoder reads the target shifted by its start token."""
    decoder_inputs = [(layout.decoder_start_token_id, *feature.target_ids[:-1]) for feature in features]
    tensors = {
        "input_ids": padded([feature.input_ids for feature in features], layout.pad_token_id),
        "attention_mask": padded([(1,) * len(feature.input_ids) for feature in features], 0),
        "decoder_input_ids": padded(decoder_inputs, layout.pad_token_id),
        "decoder_attention_mask": padded([(1,) * len(ids) for ids in decoder_inputs], 0),
        "labels": padded([feature.labels for feature in features], IGNORED),
    }
    return Batch(tensors, sum(feature.weight for feature in features))


def padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows of whole numbers as one tensor [B, T], filled up on the right."""
    import torch

    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])

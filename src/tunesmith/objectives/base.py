"""What an objective is: it encodes examples, puts them into batches, and gives a loss as a SUM.

The loop divides by the batches' weights once per optimiser step, over accumulation and ranks together;
an average of averages would count a short micro-batch as much as a long one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from tunesmith.core.plugins import Plugin
from tunesmith.core.records import Example

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

IGNORED = -100
"""The label of a position that is not scored (PyTorch's convention)."""
Task = Literal["causal", "seq2seq", "classify"]
Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Features:
    """One encoded example.

    `labels` has the length of `input_ids` (causal: the token itself where it is learnt, else -100),
    or of the target (seq2seq), or one class index (classify). `weight` is what it adds to the batch's weight.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    weight: float
    token_type_ids: tuple[int, ...] = ()
    num_cut: int = 0
    """Tokens left out because the example was longer than the limit."""

    @property
    def num_tokens(self) -> int:
        """Tokens the model reads and writes for this example, target included."""
        return len(self.input_ids) + (len(self.labels) if len(self.labels) not in (1, len(self.input_ids)) else 0)


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


class Learner(Protocol):
    """What an objective may use of the training: the model and where it is."""

    model: Module


class Objective(Plugin):
    """What is optimised."""

    task: ClassVar[Task] = "causal"
    accepts: ClassVar[tuple[type[Example], ...]] = ()
    passes: ClassVar[int] = 1
    """Optimiser passes over one prepared batch (PPO: several)."""

    @abstractmethod
    def encode(self, example: Example, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()) -> Features:
        """Token ids and labels of one example, cut to `max_length` tokens; `labels` are the class names, in order."""

    @abstractmethod
    def collate(self, features: Sequence[Features], layout: Layout) -> Batch:
        """Tensors and weight of one micro-batch."""

    def prepare(self, learner: Learner, batch: Batch) -> Batch:
        """What needs the model before the loss: reference log-probabilities, roll-outs."""
        return batch

    @abstractmethod
    def loss(self, learner: Learner, batch: Batch) -> tuple[Tensor, Metrics]:
        """The SUM of the loss over the batch's weight, and sums of other numbers to log."""

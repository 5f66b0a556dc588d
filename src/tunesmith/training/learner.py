"""The model under training, with its precision, its layout of batches and its losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tunesmith.core.errors import UserError
from tunesmith.data.masking import masking_layout
from tunesmith.kernels.fuse import fuse
from tunesmith.kernels.packed_attention import attend_padded, why_not_packed
from tunesmith.methods.base import Method
from tunesmith.models.anatomy import head_modules
from tunesmith.models.configuration import LABELLED
from tunesmith.models.load import Loaded
from tunesmith.models.logprobs import Likelihood
from tunesmith.models.probe import probe
from tunesmith.objectives.base import Batch, Features, Layout, Metrics, Objective
from tunesmith.recipe import TrainSettings
from tunesmith.training.attention import check_kernel
from tunesmith.training.frozen import FrozenStates
from tunesmith.training.order import tokens_at_once

NOT_WRITING = "only decoders that write text are packed"
PACKING_IS_OFF = "train.packing is off"
STATES = "frozen_states"
"""The entry of a batch's `extra` with what its rows' frozen blocks give."""


def layout_of(tokenizer: Any, config: Any, *, is_packed: bool) -> Layout:
    """How batches of a model by its configuration are laid out."""
    start = getattr(config, "decoder_start_token_id", None)
    return replace(masking_layout(tokenizer), is_packed=is_packed, decoder_start_token_id=0 if start is None else start)


@dataclass(frozen=True)
class Learner:
    """What an objective and the loop use: the model, and how batches reach it."""

    model: nn.Module
    method: Method
    objective: Objective
    layout: Layout
    device: torch.device
    precision: Literal["bf16", "fp32"]
    likelihood: Likelihood | None
    frozen: FrozenStates | None = None
    """What frozen blocks give for rows that are read in several epochs."""
    padded_because: str = ""
    """Why rows are padded; empty where they are packed."""
    head_factors: Mapping[str, float] = field(default_factory=dict)
    """By what the learning rates of a new head's weights are multiplied, by name."""

    @staticmethod
    def make(  # noqa: PLR0913 - the precision, packing and attention of a recipe, each with a reason to be given alone
        loaded: Loaded,
        model: nn.Module,
        *,
        method: Method,
        objective: Objective,
        precision: Literal["bf16", "fp32"],
        packing: Literal["auto", "on", "off"],
        attention: str = "auto",
        head_factor: float = 1.0,
    ) -> Learner:
        """A learner for `model`, which is `loaded.model` with the method attached.

        The weights of a new head learn `head_factor` times as fast; `attention` is the kernel of packed rows on a GPU.

        Raises:
            UserError: Packing or a kernel of attention is asked for and cannot be, with the reason.
        """
        device = next(model.parameters()).device
        config: Any = loaded.model.config
        if objective.task != "causal":
            reason = NOT_WRITING
        else:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" and device.type != "cpu"):
                reason = why_not_packed(model, config.vocab_size, attention) if packing != "off" else PACKING_IS_OFF
        if packing == "on" and reason:
            raise UserError(
                f"rows cannot be packed: {reason}.",
                code="cannot_pack",
                where=loaded.name,
                remedy="Set train.packing=auto; rows of like length then go together.",
            )
        check_kernel(model, attention, is_packed=not reason and device.type != "cpu")
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):  # a new head is fp32
            if reason:
                attend_padded(model, config.vocab_size)
            fuse(model, lambda: probe(model))
        layout = layout_of(loaded.tokenizer, config, is_packed=not reason)
        likelihood = None
        if objective.task not in LABELLED:
            likelihood = Likelihood(model, is_causal=objective.task == "causal")
        new_head: set[int] = set()
        if loaded.has_new_head and objective.task in LABELLED:
            new_head = {id(weight) for part in head_modules(model).values() for weight in part.parameters()}
        return Learner(
            model,
            method,
            objective,
            layout,
            device,
            precision,
            likelihood,
            padded_because=reason,
            head_factors={name: head_factor for name, weight in model.named_parameters() if id(weight) in new_head},
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in bf16 where the run uses it; weights that train stay in fp32."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def tokens_at_once(self, settings: TrainSettings) -> int:
        """How many tokens a micro-batch may have, while memory lasts."""
        return tokens_at_once(settings, self.device.type, self.precision)

    def batch(self, features: Sequence[Features]) -> Batch:
        """A micro-batch on the model's device."""
        numbers = None if self.frozen is None else self.frozen.numbers(features)
        if self.frozen is None or numbers is None:
            return self._collate(features)
        batch = self._collate(self.frozen.short_rows(numbers))
        states = self.frozen.states(numbers, is_packed=self.layout.is_packed, device=self.device)
        return replace(batch, extra={**batch.extra, STATES: states})

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The objective's SUM over the batch, and sums to log."""
        with self.autocast():
            batch = self.objective.prepare(self, batch)
            if STATES not in batch.extra:
                return self.objective.loss(self, batch)
            assert self.frozen is not None
            with self.frozen.replaying(batch.extra[STATES]):
                return self.objective.loss(self, batch)

    def token_losses(self, batch: Batch, *, z_loss: float = 0.0) -> Tensor:
        assert self.likelihood is not None, "a classifier has no token losses"
        return self.likelihood(batch, z_loss).nats_N

    def _collate(self, features: Sequence[Features]) -> Batch:
        batch = self.objective.collate(features, self.layout)
        is_pinned = self.device.type == "cuda"  # only copies from pinned memory go on beside the GPU's work
        tensors = {name: tensor.pin_memory() if is_pinned else tensor for name, tensor in batch.tensors.items()}
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}
        return replace(batch, tensors=moved)

    def trainable(self) -> dict[str, nn.Parameter]:
        """What trains, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

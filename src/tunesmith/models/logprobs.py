"""The likelihood of labelled tokens, computed only where a label is.

The output head is left out of the model's forward pass and applied afterwards, in chunks, to the labelled positions.
Architectures that change the logits after their head (softcapping, scaling) are found by a comparison on the model
itself, once, and then take the plain path.
Legend: B rows, T tokens, D width, V vocabulary, N labelled positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.kernels.cross_entropy import chunked_cross_entropy
from tunesmith.kernels.packed_attention import packed_inputs, packing
from tunesmith.models.anatomy import head, is_encoder_decoder
from tunesmith.objectives.base import IGNORED, Batch


@dataclass(frozen=True)
class TokenLosses:
    """Negative log-likelihoods in nats of all labelled tokens, [N], and the batch row of each, [N].

    Packed batches have one row; there `rows` is the example's place in the pack.
    """

    nats_N: Tensor
    rows_N: Tensor


class Likelihood:
    """Token losses of one model. `is_causal` shifts labels by one; otherwise each position scores its own label."""

    def __init__(self, model: nn.Module, *, is_causal: bool) -> None:
        self.model = model
        self.is_causal = is_causal
        self.head = _plain_head(model)
        if self.head is not None and not self._is_head_last():
            self.head = None

    def __call__(self, batch: Batch) -> TokenLosses:
        """The losses of a batch whose tensors hold the model's inputs and `labels` [B, T] (-100: not scored)."""
        inputs = {name: value for name, value in batch.tensors.items() if name != "labels"}
        labels_BT = batch.tensors["labels"]
        where, targets_N = _labelled(labels_BT, self.is_causal)
        if batch.lengths:
            inputs |= packed_inputs(batch.lengths, labels_BT.device)
            bounds = torch.tensor(batch.lengths, device=labels_BT.device).cumsum(0)
            rows = torch.bucketize(where[1], bounds, right=True)
        else:
            rows = where[0]
        with packing(self.model) if batch.lengths else nullcontext():
            nats = self._nats(inputs, where, targets_N, labels_BT.shape[1])
        return TokenLosses(nats, rows)

    def _nats(self, inputs: dict[str, Any], where: tuple[Tensor, Tensor], targets_N: Tensor, length: int) -> Tensor:
        rows, places = where
        if self.head is None:
            logits_BTV = self.model(**inputs).logits
            places = places + logits_BTV.shape[1] - length  # virtual tokens' own positions come first
            return F.cross_entropy(logits_BTV[rows, places].float(), targets_N, reduction="none")
        with _headless(self.head):
            hidden_BTD = self.model(**inputs).logits
        hidden_ND = hidden_BTD[rows, places + hidden_BTD.shape[1] - length]
        if torch.is_autocast_enabled(hidden_ND.device.type):
            hidden_ND = hidden_ND.to(torch.get_autocast_dtype(hidden_ND.device.type))
        weight, bias = self.head.weight, self.head.bias
        return chunked_cross_entropy(hidden_ND, weight, targets_N, bias)

    @torch.no_grad()
    def _is_head_last(self) -> bool:
        assert self.head is not None
        device = self.head.weight.device
        ids = torch.arange(2, 6, device=device)[None] % self.head.weight.shape[0]
        inputs: dict[str, Any] = {"input_ids": ids}
        if is_encoder_decoder(self.model):
            inputs["decoder_input_ids"] = ids
        was_training = self.model.training
        self.model.eval()
        try:
            whole = self.model(**inputs).logits
            with _headless(self.head):
                hidden = self.model(**inputs).logits
        except RuntimeError:  # what follows the head wants a whole vocabulary (BART's bias)
            return False
        finally:
            self.model.train(was_training)
        if hidden.shape[-1] != self.head.weight.shape[1] or hidden.shape[1] != whole.shape[1]:
            return False
        again = F.linear(hidden.to(self.head.weight.dtype), self.head.weight, self.head.bias)
        tolerance = 1e-2 if whole.dtype == torch.bfloat16 else 1e-4
        return bool(torch.allclose(whole.float(), again.float(), rtol=tolerance, atol=tolerance))


def _plain_head(model: nn.Module) -> nn.Linear | None:
    found = head(model)
    return found if type(found) is nn.Linear else None


def _labelled(labels_BT: Tensor, is_causal: bool) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Where the model's output is scored (row, position), and the token it should give there."""
    if not is_causal:
        rows, positions = torch.nonzero(labels_BT != IGNORED, as_tuple=True)
        return (rows, positions), labels_BT[rows, positions]
    rows, positions = torch.nonzero(labels_BT[:, 1:] != IGNORED, as_tuple=True)
    return (rows, positions), labels_BT[rows, positions + 1]


@contextmanager
def _headless(output_head: nn.Linear) -> Iterator[None]:
    output_head.forward = _identity  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del output_head.forward


def _identity(hidden: Tensor) -> Tensor:
    return hidden

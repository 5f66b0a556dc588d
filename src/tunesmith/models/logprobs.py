"""The likelihood of labelled tokens, computed only where a label is.

The output head is left out of the model's forward pass and applied afterwards, in chunks, to the labelled positions.
What an architecture does to the logits after its head (softcapping, a scale, BART's bias) is read off its
configuration and proven on the model itself, once; a model that does something else takes the plain path.
Legend: B rows, T tokens, D width, V vocabulary, N labelled positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.kernels.cross_entropy import PLAIN, LogitTransform, chunked_cross_entropy
from tunesmith.kernels.packed_attention import packed_inputs
from tunesmith.kernels.visible import borders
from tunesmith.models.anatomy import head, is_encoder_decoder, plain
from tunesmith.models.probe import probe_inputs
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
        self.transform = logit_transform(model)
        if self.head is not None and not self._is_head_last():
            self.head = None

    def __call__(self, batch: Batch, z_loss: float = 0.0) -> TokenLosses:
        """The losses of a batch whose tensors hold the model's inputs and `labels` [B, T] (-100: not scored).

        `z_loss` adds z_loss log^2 Z of each token to the gradient, not to the values.
        """
        inputs: dict[str, Any] = {name: value for name, value in batch.tensors.items() if name != "labels"}
        if self.is_causal or is_encoder_decoder(self.model):
            inputs["use_cache"] = False  # copies of keys and values that nobody reads
        labels_BT = batch.tensors["labels"]
        where, targets_N = _labelled(labels_BT, self.is_causal)
        if batch.lengths:
            inputs |= packed_inputs(batch.lengths, labels_BT.device)
            bounds = torch.tensor(batch.lengths, device=labels_BT.device).cumsum(0)
            rows = torch.bucketize(where[1], bounds, right=True)
        else:
            rows = where[0]
        with borders(batch.lengths):
            nats = self._nats(inputs, where, targets_N, labels_BT.shape[1], z_loss)
        return TokenLosses(nats, rows)

    def _nats(
        self, inputs: dict[str, Any], where: tuple[Tensor, Tensor], targets_N: Tensor, length: int, z_loss: float
    ) -> Tensor:
        rows, places = where
        if self.head is None:
            logits_BTV = self.model(**inputs).logits
            places = places + logits_BTV.shape[1] - length  # virtual tokens' own positions come first
            logits_NV: Tensor = logits_BTV[rows, places].float()
            nats_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
            if not z_loss:
                return nats_N
            penalty_N = z_loss * logits_NV.logsumexp(-1).square()
            return nats_N + penalty_N - penalty_N.detach()  # in the gradient only
        hidden_BTD = self._hidden(inputs)
        hidden_ND = hidden_BTD[rows, places + hidden_BTD.shape[1] - length]
        if torch.is_autocast_enabled(hidden_ND.device.type):
            hidden_ND = hidden_ND.to(torch.get_autocast_dtype(hidden_ND.device.type))
        return chunked_cross_entropy(
            hidden_ND, self.head.weight, targets_N, self._bias(), transform=self.transform, z_loss=z_loss
        )

    def _hidden(self, inputs: dict[str, Any]) -> Tensor:
        """What the model gives its head: [B, T, D]."""
        assert self.head is not None
        seen: list[Tensor] = []

        def take(states_BTD: Tensor) -> Tensor:
            seen.append(states_BTD)
            return states_BTD[..., :1]  # whatever comes after the head has next to nothing to do

        with _in_place_of(self.head, take, self._late_bias()):
            self.model(**inputs)
        return seen[0]

    def _late_bias(self) -> Tensor | None:
        """What BART and its kind add to the logits [1, V]: a buffer, always a constant."""
        late = getattr(plain(self.model), "final_logits_bias", None)
        return late if isinstance(late, Tensor) and not late.requires_grad else None

    def _bias(self) -> Tensor | None:
        assert self.head is not None
        late, own = self._late_bias(), self.head.bias
        if late is None:
            return own
        return late[0] if own is None else own + late[0]

    @torch.no_grad()
    def _is_head_last(self) -> bool:
        """Whether the hidden states, the head and the transform together give the model's own logits."""
        assert self.head is not None
        weight, late = self.head.weight, self._late_bias()
        inputs = probe_inputs(self.model)
        was_training = self.model.training
        self.model.eval()
        try:
            whole = self.model(**inputs).logits
            hidden = self._hidden(inputs)
            # Small logits hardly show a softcap, so the head gives large ones of a known kind for once.
            known = torch.linspace(-99, 99, weight.shape[0], dtype=weight.dtype, device=weight.device)
            with _in_place_of(self.head, lambda states: known.expand(*states.shape[:-1], -1), late):
                changed = self.model(**inputs).logits
        except RuntimeError:  # what follows the head wants a whole vocabulary
            return False
        finally:
            self.model.train(was_training)
        if hidden.shape[-1] != weight.shape[1] or hidden.shape[1] != whole.shape[1]:
            return False
        again = self.transform(F.linear(hidden.to(weight.dtype), weight, self._bias()))
        expected = self.transform(known.float()).expand_as(changed)
        return _is_close(whole, again) and _is_close(changed, expected)


def logit_transform(model: nn.Module) -> LogitTransform:
    """What the model's configuration says about its logits: a softcap, a factor, a divisor."""
    config: Any = plain(model).config.get_text_config(decoder=True)
    factor, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    softcap = getattr(config, "final_logit_softcapping", None)
    if not (factor or divisor or softcap):
        return PLAIN
    return LogitTransform(scale=float(factor or 1) / float(divisor or 1), softcap=float(softcap or 0))


def _is_close(mine: Tensor, other: Tensor) -> bool:
    tolerance = 1e-2 if torch.bfloat16 in (mine.dtype, other.dtype) else 1e-4
    return bool(torch.allclose(mine.float(), other.float(), rtol=tolerance, atol=tolerance))


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
def _in_place_of(
    output_head: nn.Linear, replacement: Callable[[Tensor], Tensor], late_bias: Tensor | None
) -> Iterator[None]:
    """Within it the head does what `replacement` does, and a bias after it is nothing."""
    output_head.forward = replacement  # type: ignore[method-assign,assignment]
    kept = None if late_bias is None else late_bias.data
    try:
        if late_bias is not None:
            late_bias.data = late_bias.new_zeros(1, 1)
        yield
    finally:
        del output_head.forward
        if late_bias is not None and kept is not None:
            late_bias.data = kept

"""Cross-entropy of hidden states against a vocabulary without holding [positions x vocabulary].

Positions go through the head in chunks, and the gradients are made in the same pass: the logits of a chunk become
the errors in place, in slices that fit a processor's cache, and are gone before the next chunk. Where the head trains,
its gradient is summed up over the chunks too. That is the gradient of the SUM of the losses; a backward pass that
weighs positions differently computes the chunks a second time.
Legend: N labelled positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.kernels.native_passes import native

CHUNK_BYTES = 64 * 2**20
"""Size of one chunk of logits in the dtype of the products."""
SLICE_BYTES = 3 * 2**20
"""Size of the fp32 logits that are worked on at once on a processor (elsewhere: the whole chunk)."""


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to what its head gives: softcap x tanh(scale x logits / softcap)."""

    scale: float = 1.0
    """Cohere's `logit_scale`; one divided by Granite's `logits_scaling`."""
    softcap: float = 0.0
    """Gemma 2's `final_logit_softcapping` (arXiv:2408.00118, section 2); 0: none."""

    def __call__(self, logits: Tensor) -> Tensor:
        """The model's logits, in the dtype given."""
        scaled = logits if self.scale == 1 else logits * self.scale
        return self.softcap * torch.tanh(scaled / self.softcap) if self.softcap else scaled


PLAIN = LogitTransform()


def chunked_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    bias_V: Tensor | None = None,
    *,
    transform: LogitTransform = PLAIN,
    z_loss: float = 0.0,
) -> Tensor:
    """The negative log-likelihood of each label in nats, fp32 (fp64 of fp64 inputs), [N].

    Products run in the dtype of `hidden_ND`; softmax and sums in fp32. The gradient is that of
    nll + z_loss log^2 Z, Z the softmax's denominator (arXiv:2204.02311, section 5); the value stays the plain nll.
    """
    losses: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, labels_N, transform, z_loss, torch.is_grad_enabled()
    )
    return losses


def reference_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    bias_V: Tensor | None = None,
    *,
    transform: LogitTransform = PLAIN,
    z_loss: float = 0.0,
) -> Tensor:
    """nll + z_loss log^2 Z of each label with all logits at once, [N]; here the value has both terms."""
    logits = F.linear(hidden_ND, weight_VD.to(hidden_ND.dtype), None if bias_V is None else bias_V.to(hidden_ND.dtype))
    exact = transform(logits.to(_exact(logits.dtype)))
    return F.cross_entropy(exact, labels_N, reduction="none") + z_loss * exact.logsumexp(-1).square()


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd's signature
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        transform: LogitTransform,
        z_loss: float,
        is_training: bool,
    ) -> Tensor:
        needs = [is_training and need for need in ctx.needs_input_grad[:3]]
        head = _Head(hidden_ND, weight_VD, bias_V, labels_N, transform, z_loss)
        losses, gradients = head.losses_and_gradients(needs)
        ctx.transform, ctx.z_loss, ctx.prepared = transform, z_loss, gradients
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N)
        return losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream_N,) = grad_outputs
        hidden_ND, weight_VD, bias_V, labels_N = ctx.saved_tensors
        grad_hidden, grad_weight, grad_bias = ctx.prepared
        is_sum = upstream_N.stride() == (0,) or len(upstream_N) == 1  # known without reading the device
        if grad_weight is None and grad_bias is None:
            grad_hidden = None if grad_hidden is None else grad_hidden * upstream_N[:, None].to(grad_hidden.dtype)
        elif is_sum and len(upstream_N):
            factor = upstream_N[0]
            if factor.device.type != "cpu" or factor != 1:
                grad_hidden, grad_weight, grad_bias = (
                    None if one is None else one * factor.to(one.dtype) for one in ctx.prepared
                )
        else:
            head = _Head(hidden_ND, weight_VD, bias_V, labels_N, ctx.transform, ctx.z_loss)
            _, (grad_hidden, grad_weight, grad_bias) = head.losses_and_gradients(ctx.needs_input_grad[:3], upstream_N)
        grad_weight = None if grad_weight is None else grad_weight.to(weight_VD.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias_V.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


@dataclass(frozen=True)
class _Head:
    """The labelled positions of a batch, and the head they go through."""

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    labels_N: Tensor
    transform: LogitTransform
    z_loss: float

    def losses_and_gradients(
        self, needs: Any, upstream_N: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
        """nll of each position, and the gradients of hidden states, weight and bias where needed."""
        hidden, dtype = self.hidden_ND, self.hidden_ND.dtype
        weight = self.weight_VD.to(dtype)
        bias = None if self.bias_V is None else self.bias_V.to(dtype)
        needs_hidden, needs_weight, needs_bias = needs
        losses = hidden.new_empty(len(hidden), dtype=_exact(dtype))
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight: Tensor | None = None
        grad_bias = hidden.new_zeros(len(weight), dtype=_exact(dtype)) if needs_bias else None
        chunks = _chunks(len(hidden), len(weight) * dtype.itemsize)
        room = hidden.new_empty(chunks[0].stop if chunks else 0, len(weight))
        for chunk in chunks:
            logits = room[: chunk.stop - chunk.start]
            if bias is None:
                torch.mm(hidden[chunk], weight.T, out=logits)
            else:
                torch.addmm(bias, hidden[chunk], weight.T, out=logits)
            losses[chunk] = self._sweep(logits, chunk, makes_errors=any(needs), upstream_N=upstream_N)
            if grad_hidden is not None:
                torch.mm(logits, weight, out=grad_hidden[chunk])
            if needs_weight and grad_weight is None:  # a single chunk stays in the dtype of its product
                grad_weight = logits.T @ hidden[chunk]
                grad_weight = grad_weight if len(chunks) == 1 else grad_weight.to(_exact(dtype))
            elif grad_weight is not None:
                grad_weight += logits.T @ hidden[chunk]
            if grad_bias is not None:
                grad_bias += logits.sum(0, dtype=grad_bias.dtype)
        if needs_weight and grad_weight is None:
            grad_weight = torch.zeros_like(self.weight_VD)
        return losses, (grad_hidden, grad_weight, grad_bias)

    def _sweep(self, logits: Tensor, chunk: slice, *, makes_errors: bool, upstream_N: Tensor | None) -> Tensor:
        """-log softmax[label] of a chunk's rows; its logits become the errors, d loss / d logits, in place."""
        if self.transform == PLAIN and upstream_N is None and (passes := native(logits)):
            labels = self.labels_N[chunk].contiguous()
            are_words = labels.dtype == torch.int64 and bool(((labels >= 0) & (labels < logits.shape[1])).all())
            if are_words:  # else PyTorch says what is wrong
                return passes.cross_entropy_(logits, labels, z_loss=self.z_loss, makes_errors=makes_errors)
        exact = _exact(logits.dtype)
        size = SLICE_BYTES if logits.device.type == "cpu" else logits.numel() * exact.itemsize
        slices = _chunks(len(logits), logits.shape[1] * exact.itemsize, size)
        room = logits.new_empty(slices[0].stop, logits.shape[1], dtype=exact)
        scale, softcap = self.transform.scale, self.transform.softcap
        losses = []
        for part in slices:
            labels = self.labels_N[chunk][part, None]
            values = room[: part.stop - part.start].copy_(logits[part])
            if scale != 1:
                values.mul_(scale)
            slope = None
            if softcap:
                slope = 1 - values.div_(softcap).tanh_().square()
                values.mul_(softcap)
            chosen = values.gather(1, labels)
            largest = values.amax(1, keepdim=True)
            total = values.sub_(largest).exp_().sum(1, keepdim=True)
            log_total = largest + total.log()
            losses.append((log_total - chosen).squeeze(1))
            if not makes_errors:
                continue
            values.mul_((1 + 2 * self.z_loss * log_total) / total if self.z_loss else 1 / total)
            values.scatter_add_(1, labels, values.new_full((1, 1), -1.0).expand_as(labels))
            if slope is not None:
                values.mul_(slope)
            if scale != 1:
                values.mul_(scale)
            if upstream_N is not None:
                values.mul_(upstream_N[chunk][part, None])
            logits[part] = values
        return torch.cat(losses)


def _chunks(num_rows: int, row_bytes: int, size: int | None = None) -> list[slice]:
    """Equal parts of the rows, none larger than `size` bytes (of one row at least)."""
    most = max(1, (CHUNK_BYTES if size is None else size) // row_bytes)
    each = -(-num_rows // max(1, -(-num_rows // most)))
    return [slice(start, min(start + each, num_rows)) for start in range(0, num_rows, max(1, each))]


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
